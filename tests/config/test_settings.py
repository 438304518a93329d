"""Settings: parsing, ranges, merging, files, and what `auto` becomes."""

from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dreamkd.config import (
    COMMANDS,
    PRESETS,
    CompetitionConfig,
    DistillConfig,
    EvalConfig,
    ImageConfig,
    InspectConfig,
    InvertConfig,
    OptionField,
    merge,
    option,
    options,
    settle,
)
from dreamkd.config.presets import OTHER_IMAGES
from dreamkd.errors import ConfigError

PAIR = {"teacher": "t", "student": "s"}
EVERY = [(name, field) for name, config in COMMANDS.items() for field in options(config)]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One field of each kind."""

    name: str = option(group="Run", argument=True, help="h")
    count: int = option(3, group="Run", minimum=1, maximum=5, help="h")
    rate: float = option(0.5, group="Run", above=0, maximum=1, help="h")
    steps: int | str = option("auto", group="Run", minimum=1, auto="by size", help="h")
    kind: str = option("a", group="Run", choices=("a", "b"), help="h")
    where: str | None = option(None, group="Run", help="h")
    mean: tuple[float, ...] = option((), group="Run", minimum=0, help="h")
    sure: bool = option(False, group="Run", help="h")
    big: float = option(1.0, group="Run", minimum=0, help="h")
    switch: str = option("on", group="Run", choices=("on", "off"), help="h")


FIELDS = {field.name: field for field in options(Example)}


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("count", "5", 5),
        ("count", 5, 5),
        ("rate", "1", 1.0),
        ("rate", 1, 1.0),
        ("rate", "1e-3", 0.001),
        ("steps", "auto", "auto"),
        ("steps", "7", 7),
        ("kind", "b", "b"),
        ("where", None, None),
        ("where", "x y/ä", "x y/ä"),
        ("mean", "0.1,0.2", (0.1, 0.2)),
        ("mean", [0.1, "0.2"], (0.1, 0.2)),
        ("mean", 1, (1.0,)),
        ("sure", True, True),
        ("switch", True, "on"),
        ("switch", False, "off"),
    ],
)
def test_legal_values(name: str, value: Any, parsed: Any) -> None:
    assert FIELDS[name].parse(value) == parsed
    assert type(FIELDS[name].parse(value)) is type(parsed)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("count", "6", "--count: '6' is out of range; legal: 1..5"),
        ("count", 0, "--count: 0 is out of range; legal: 1..5"),
        ("count", "2.0", "--count: '2.0' is not a whole number"),
        ("count", 2.0, "--count: 2.0 is not a whole number"),
        ("count", True, "--count: True is not a whole number"),
        ("count", "auto", "--count: 'auto' is not a whole number"),
        ("count", date(2020, 1, 1), "--count: datetime.date(2020, 1, 1) is not a whole number"),
        ("count", None, "--count: None is not a whole number"),
        ("rate", "0", "--rate: '0' is out of range; legal: >0 and <=1"),
        ("rate", "nan", "--rate: 'nan' is not a finite number"),
        ("big", "1e39", "--big: '1e39' is out of range; it is beyond single precision"),
        ("rate", "1e999", "--rate: '1e999' is not a finite number"),
        ("rate", 10**400, f"--rate: {'1' + 17 * '0'}...{19 * '0'} is not a number"),
        ("steps", None, "--steps: None is not a whole number"),
        ("steps", 0, "--steps: 0 is out of range; legal: >=1 or auto"),
        ("steps", 2**63, "--steps: 9223372036854775808 is out of range; it has more than 64 bits"),
        ("steps", "Auto", "--steps: 'Auto' is not a whole number"),
        ("kind", True, "--kind: True is not one of a, b"),
        ("kind", "aa", "--kind: 'aa' is not one of a, b (did you mean 'a'?)"),
        ("where", "", "--where: '' is not text"),
        ("where", ["a"], "--where: ['a'] is not text"),
        ("where", "a\0b", r"--where: 'a\x00b' is not text"),
        ("mean", "0.1,,", "--mean: '' is not a number"),
        ("mean", [[0.1]], "--mean: [0.1] is not a number"),
        ("mean", {}, "--mean: {} is not a number"),
        ("mean", "-1", "--mean: '-1' is out of range; legal: >=0"),
        ("sure", "yes", "--sure: 'yes' is not true or false"),
        pytest.param("count", 16**5000, "--count: that number is out of range", id="hexadecimal"),
        pytest.param("name", 16**5000, "NAME: that number is not text", id="hexadecimal name"),
    ],
)
def test_illegal_values(name: str, value: Any, line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        FIELDS[name].parse(value)
    assert str(refusal.value).startswith(line)
    assert len(str(refusal.value)) < 120


def test_merge_is_default_then_file_then_given() -> None:
    built = merge(Example, {"name": "n", "count": "4"}, file={"count": 2, "rate": 1})
    assert (built.name, built.count, built.rate, built.kind) == ("n", 4, 1.0, "a")


@pytest.mark.parametrize(
    ("given", "file", "line"),
    [
        ({}, {}, "NAME is missing: h"),
        ({"name": "n"}, {"coun": 1}, "unknown setting 'coun' (did you mean 'count'?)"),
        ({"name": "n", "zzzzz": 1}, {}, "unknown setting 'zzzzz'"),
        ({"name": "n"}, {"count": 9}, "--count: 9 is out of range"),
    ],
)
def test_merge_refuses(given: dict[str, Any], file: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        merge(Example, given, file=file)
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize(("command", "field"), EVERY, ids=[f"{c} {f.flag}" for c, f in EVERY])
def test_every_field_documents_itself_and_its_default_is_legal(
    command: str, field: OptionField
) -> None:
    assert field.option.help.strip() == field.option.help != ""
    assert not field.option.help.endswith(".")
    if not field.required and field.default is not None:
        assert field.parse(field.default) == field.default
    if field.kind in (int, float) and not field.is_list and field.default is not None:
        assert field.legal, "a number without a range"


def test_presets_name_the_same_settings_and_every_value_is_legal() -> None:
    by_name = {field.name: field for field in options(DistillConfig)}
    for preset in PRESETS.values():
        assert set(preset) == set(PRESETS["fast"])
        for name, values in preset.items():
            if name != "jitter":  # a share of the side; pixels once settled
                given = [value for value in values if value is not None]  # None: measured
                assert [by_name[name].parse(value) for value in given] == given
    shared = (*options(ImageConfig), *options(CompetitionConfig))
    autos = {field.name for field in shared if field.default in ("auto", ())}
    student = {"first_batches", "rounds", "steps", "batch_size", "lr", "weight_decay", "cutmix"}
    assert set(PRESETS["fast"]) - autos == {*student, "ema", "temperature"}
    assert autos - set(PRESETS["fast"]) == {"image_chunk", "images"}  # measured; by the recipe
    for values in OTHER_IMAGES.values():
        assert set(values) <= set(PRESETS["fast"])
        assert all(by_name[k].parse(v) == v for k, v in values.items() if v is not None)


@pytest.mark.parametrize(
    ("size", "preset", "want"),
    [
        # jitter: 32/8; 16/16; 224 * 30/224; 16 * 2/32
        ((3, 32, 32), "fast", {"image_batch_size": 256, "jitter": 4, "flip": "on"}),
        ((1, 16, 16), "fast", {"jitter": 1, "jitter_border": "wrap", "flip": "off"}),
        ((3, 224, 224), "fast", {"jitter": 30, "jitter_border": "wrap", "flip": "on"}),
        ((1, 16, 16), "released", {"image_steps": 2000, "jitter": 1, "flip": "off"}),
        ((1, 224, 224), "released", {"image_batch_size": 84, "flip": "off"}),
        ((3, 64, 32), "released", {"image_schedule": "constant", "stages": (1,)}),
        ((3, 224, 224), "released", {"image_steps": 3000, "stages": (2, 1)}),
        ((3, 224, 224), "paper", {"image_steps": 20000, "stages": (1,), "clip": "off"}),
    ],
)
def test_auto_is_settled_by_preset_and_size(
    size: tuple[int, int, int], preset: str, want: dict[str, Any]
) -> None:
    settled = settle(ImageConfig(preset=preset), input_size=size)
    assert {name: getattr(settled, name) for name in want} == want
    left = {field.name for field in fields(settled) if getattr(settled, field.name) == "auto"}
    measured = {"r_feature" if preset == "fast" else "r_feature_scale"}
    if preset == "fast" and 32 <= min(size[1:]) < 64:
        measured.add("jitter_border")
    refining = {"refine_steps", "refine_lr", "refine_r_feature"}  # of pixels, without effect
    assert left == {"image_chunk", *measured, *refining}


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"images": "generator"}, (20, 0.1, "auto", 10.0, 0.175)),
        ({"images": "generator", "refine_steps": 0}, (0, "auto", "auto", 10.0, "auto")),
        ({"images": "generator", "refine_r_feature": 2}, (20, 0.1, 2, 10.0, "auto")),
        ({"images": "generator", "r_feature_scale": 0.2}, (20, 0.1, "auto", 10.0, 0.2)),
        (
            {"images": "generator", "r_feature_scale": 0.2, "refine_steps": 0},
            (0, "auto", "auto", "auto", 0.2),
        ),
        ({"images": "pyramid", "refine_steps": 3, "r_feature": 5}, (3, 0.1, 5, 5, "auto")),
        ({"images": "pyramid"}, (0, "auto", "auto", "auto", 0.0567)),
        (
            {"images": "pyramid", "preset": "paper", "refine_steps": 5},
            (5, 0.1, 10.0, 10.0, "auto"),
        ),
    ],
)
def test_the_weight_of_refined_pixels_is_calibrated_where_there_is_a_scale(
    given: dict[str, Any], want: tuple[Any, ...]
) -> None:
    """As an option that the settled settings give again would be: none is without effect."""
    settled = settle(merge(InvertConfig, {"model": "m", **given}), input_size=(3, 32, 32))
    names = ("refine_steps", "refine_lr", "refine_r_feature", "r_feature", "r_feature_scale")
    assert tuple(getattr(settled, name) for name in names) == want
    merge(InvertConfig, {field.name: getattr(settled, field.name) for field in fields(settled)})


@pytest.mark.parametrize(
    ("side", "std", "want"),
    [
        (224, (0.229, 0.224, 0.225), {"image_lr": 0.25, "tv_l2": 1.23e-3}),
        (224, (0.452, 0.452, 0.452), {"image_lr": 0.125, "tv_l2": 2.46e-3}),
        (32, (0.452, 0.452, 0.452), {"image_lr": 0.1, "tv_l2": 4e-4}),
    ],
)
def test_from_64_px_rates_and_priors_mean_the_same_whatever_the_normalisation(
    side: int, std: tuple[float, ...], want: dict[str, float]
) -> None:
    """Normalised with twice the deviation, images have half the numbers."""
    settled = settle(ImageConfig(preset="paper"), input_size=(3, side, side), std=std)
    assert {name: getattr(settled, name) for name in want} == want
    generated = settle(ImageConfig(images="generator"), input_size=(3, side, side), std=std)
    # What is refined are pixels; the generator's own rate is of its weights.
    assert generated.refine_lr == pytest.approx(0.4 * want["image_lr"] if side > 63 else 0.1)
    assert generated.image_lr == 3e-3
    given = settle(ImageConfig(image_lr=0.3), input_size=(3, side, side), std=std)
    assert given.image_lr == 0.3


@pytest.mark.parametrize(
    ("side", "given", "recipe", "images"),
    [
        (16, {}, "adaptive", "pixels"),
        (32, {}, "generator", "generator"),
        (64, {}, "generator", "generator"),
        (224, {}, "adaptive", "pixels"),
        (32, {"preset": "released"}, "adaptive", "pixels"),
        (32, {"images": "pyramid"}, "adaptive", "pyramid"),
        (32, {"recipe": "adaptive"}, "adaptive", "pixels"),
        (16, {"recipe": "generator"}, "generator", "generator"),
        (16, {"images": "generator"}, "generator", "generator"),
        (32, {"data": "shards"}, "offline", "auto"),
    ],
)
def test_the_recipe_follows_from_data_images_preset_and_size(
    side: int, given: dict[str, Any], recipe: str, images: str
) -> None:
    config = DistillConfig(**PAIR, **given)
    settled = settle(config, input_size=(3, side, side))
    assert (settled.recipe, settled.images) == (recipe, images)
    competes = {"generator": "kl", "adaptive": "js", "offline": "auto"}
    assert settled.competition_loss == competes[recipe]


@pytest.mark.parametrize(
    ("side", "given", "want"),
    [
        (16, {}, (0.0, 4.0)),
        (32, {}, (0.0, 20.0)),
        (32, {"data": "shards"}, (1.0, 20.0)),
        (32, {"data": "shards", "cutmix": 0.5, "temperature": 2}, (0.5, 2)),
        (32, {"data": "shards", "preset": "released"}, (0.0, 3.0)),
        (224, {}, (1.0, 20.0)),
    ],
)
def test_students_of_pixels_see_mixed_images_from_32_px(
    side: int, given: dict[str, Any], want: tuple[float, float]
) -> None:
    settled = settle(DistillConfig(**PAIR, **given), input_size=(3, side, side))
    assert (settled.cutmix, settled.temperature) == want


@pytest.mark.parametrize(
    ("side", "given", "averaged"),
    [
        (16, {}, False),
        (32, {}, True),
        (32, {"recipe": "adaptive"}, False),
        (32, {"data": "shards"}, False),
        (32, {"preset": "released"}, False),
        (32, {"preset": "released", "images": "generator"}, True),
        (32, {"ema": 0.0}, False),
        (224, {"ema": 0.5}, True),
    ],
)
def test_of_a_generator_s_students_an_average_is_the_result(
    side: int, given: dict[str, Any], averaged: bool
) -> None:
    settled = settle(DistillConfig(**PAIR, **given), input_size=(3, side, side))
    assert (float(settled.ema) > 0) == averaged


def test_what_is_given_is_not_settled() -> None:
    settled = settle(ImageConfig(jitter=9, flip="on"), input_size=(1, 16, 16))
    assert (settled.jitter, settled.flip) == (9, "on")


@pytest.mark.parametrize(
    ("config", "values", "line"),
    [
        (InspectConfig, {"model": "m", "input_size": (1, 2)}, "--input-size: give H, or C,H,W"),
        (EvalConfig, {"model": "m", "data": "d", "quiet": True, "verbose": True}, "--quiet and"),
        (InvertConfig, {"model": "m", "quiet": True, "verbose": True}, "--quiet and --verbose"),
        (DistillConfig, {**PAIR, "steps": 3, "warmup": 3}, "--warmup: 3"),
        (DistillConfig, {**PAIR, "recipe": "offline"}, "--recipe offline: needs images"),
        (
            DistillConfig,
            {**PAIR, "competition": 0, "competition_temperature": 3},
            "--competition-temperature has no effect with --competition 0",
        ),
        (
            InvertConfig,
            {
                "model": "m",
                "method": "adaptive",
                "student": "s",
                "competition": 0,
                "competition_loss": "kl",
            },
            "--competition-loss has no effect with --competition 0",
        ),
        (
            DistillConfig,
            {**PAIR, "rounds": 0, "competition": 5},
            "--competition has no effect with --rounds 0",
        ),
        (DistillConfig, {**PAIR, "data": "d", "labels": "l", "budget_minutes": 1}, "--labels: are"),
        (DistillConfig, {**PAIR, "recipe": "adaptive", "data": "d"}, "--recipe adaptive: makes"),
        (
            DistillConfig,
            {**PAIR, "recipe": "adaptive", "images": "generator"},
            "--recipe adaptive does not go with --images generator",
        ),
        (
            DistillConfig,
            {**PAIR, "recipe": "generator", "images": "pyramid"},
            "--recipe generator does not go with --images pyramid",
        ),
    ],
)
def test_combinations(config: type, values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        merge(config, values)
    assert str(refusal.value).startswith(line)


def test_what_is_said_of_a_model_reaches_the_one_that_loads_it(tmp_path: Path) -> None:
    said = {
        "arch": "resnet18",
        "num_classes": 7,
        "input_size": (1, 20, 30),
        "mean": (0.4,),
        "std": (0.2,),
        "trust_pickle": True,
        "class_names": str(tmp_path / "names"),
    }
    (tmp_path / "names").write_text("cat\nÉclair, 1/2 \n", encoding="utf-8")
    loaded = InspectConfig(model="m", **said).load_arguments()  # type: ignore[arg-type]
    assert loaded == {**said, "class_names": ("cat", "Éclair, 1/2")}
    unsaid = dict.fromkeys(said) | {"trust_pickle": False}
    assert InspectConfig(model="m").load_arguments() == unsaid


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("a\n\nb", "line 2 is")])
def test_class_names_are_lines_of_a_file(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "names").write_text(content)
    with pytest.raises(ConfigError, match=rf"--class-names .*{said}"):
        InspectConfig(model="m", class_names=str(tmp_path / "names")).load_arguments()


def test_one_side_is_a_square_of_the_channels_that_there_are() -> None:
    assert InspectConfig(model="m", input_size=(32,)).load_arguments()["input_size"] == (32, 32)
