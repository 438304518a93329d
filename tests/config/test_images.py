"""Options of R_feature where nothing is matched."""

from dataclasses import fields
from typing import Any

import pytest

from dreamkd.config import PRESETS, DistillConfig, InvertConfig, merge, settle
from dreamkd.errors import ConfigError

NOTHING: dict[str, Any] = {"r_feature": 0}
REFINED = {**NOTHING, "images": "generator"}
GIVEN = {"first_bn": 5, "bn_momentum": 0.5, "bn_prior": "net"}


def decided(config: type, **given: Any) -> Any:
    """As the workflows settle it, and check it as if it had been given."""
    names = {"model": "m"} if config is InvertConfig else {"teacher": "t", "student": "s"}
    settled = settle(merge(config, {**names, **given}), input_size=(3, 32, 32))
    return merge(config, {field.name: getattr(settled, field.name) for field in fields(settled)})


@pytest.mark.parametrize(
    "given",
    [
        NOTHING,
        {**NOTHING, "images": "pixels"},
        {**NOTHING, "images": "pyramid", "refine_steps": 5},
        {**NOTHING, "images": "pyramid", "refine_r_feature": 0},
        {**REFINED, "refine_steps": 0},
        {**REFINED, "refine_r_feature": 0},
    ],
)
@pytest.mark.parametrize("name", GIVEN)
def test_how_statistics_are_matched_is_refused_where_none_are(
    name: str, given: dict[str, Any]
) -> None:
    line = f"--{name.replace('_', '-')} has no effect with --r-feature 0"
    with pytest.raises(ConfigError, match=f"^{line}$"):
        decided(InvertConfig, **given, **{name: GIVEN[name]})


@pytest.mark.parametrize(
    "given",
    [
        {"first_bn": 5, "bn_prior": "net"},
        {"first_bn": 5, "bn_prior": "net", "refine_r_feature": 2},
        {"first_bn": 5, "images": "pyramid", "refine_steps": 5, "refine_r_feature": 2},
    ],
)
def test_pixels_that_are_refined_may_be_matched_alone(given: dict[str, Any]) -> None:
    assert decided(InvertConfig, **{**REFINED, **given}).first_bn == 5
    with pytest.raises(ConfigError, match=r"^--bn-momentum has no effect with --r-feature 0$"):
        decided(InvertConfig, **{**REFINED, **given}, bn_momentum=0.5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("images", ["auto", "pixels", "pyramid", "generator"])
@pytest.mark.parametrize("config", [InvertConfig, DistillConfig])
def test_what_no_one_gave_is_settled_to_nothing(config: type, images: str, preset: str) -> None:
    settled = decided(config, preset=preset, images=images, **NOTHING)
    assert (settled.first_bn, settled.bn_momentum, settled.bn_prior) == (1.0, 0.0, None)


def test_with_a_weight_nothing_changes() -> None:
    settled = decided(InvertConfig, r_feature=1, **GIVEN)
    assert {name: getattr(settled, name) for name in GIVEN} == GIVEN
