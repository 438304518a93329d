"""What counts as a file, and what makes two runs the same although it moved."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from dreamkd import identity, models
from dreamkd.config import InvertConfig
from dreamkd.errors import RunError
from dreamkd.inversion import invert
from dreamkd.models import Classifier
from dreamkd.runfolder import default_folder
from tests.conftest import invert_config


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("net.pkl", True),
        *((f"net.{ending}", True) for ending in ("safetensors", "pt", "pth", "bin", "ckpt", "tar")),
        ("folder/net", True),
        ("./net", True),
        ("net", False),
        ("timm:resnet18", False),
        ("resnet18.a1_in1k", False),  # weights of a name
    ],
)
def test_what_does_not_lie_there_is_a_file_to_all_or_to_none(spec: str, path: bool) -> None:
    assert (models.is_file(spec), identity.is_path(spec)) == (path, path)


@pytest.mark.parametrize(
    ("name", "then", "now", "same"),
    [
        ("model", "a.pkl", "b.pkl", True),
        ("model", "net", "/b/net", True),  # without an ending
        ("model", "/b/net", "net", True),
        ("model", "net", "/b/other", False),
        ("model", "net", "other", False),  # names, as far as two words tell
        ("model", "resnet18", "timm:resnet18", False),
        *((name, "a.pt", "b/a.pt", True) for name in ("teacher", "student", "bn_prior")),
        ("data", "a", "b", True),
        ("labels", "a", "b", True),
        ("verifier", ["a", "b"], ["x/a", "b"], True),
        ("verifier", ["a", "b"], ["x/b", "b"], False),
        ("data", "digits.tar", "sklearn:digits", False),
        ("student", None, "a.pt", False),
        ("classes", "net", "/b/net", False),  # no network
    ],
)
def test_a_file_may_move(name: str, then: object, now: object, same: bool) -> None:
    found = identity.differing({name: now}, then={name: then}, decided={name: then})
    assert (found == []) is same


def test_where_a_run_lies_and_what_it_says_makes_no_other_run() -> None:
    plain, told = (
        identity.requested_settings(InvertConfig(model="m", **given))
        for given in ({}, {"out": "x", "quiet": True, "json": True, "max_minutes": 1.0})
    )
    assert plain == told
    assert plain != identity.requested_settings(InvertConfig(model="m", seed=1))


def test_of_two_cards_what_is_not_the_same_is_told_apart() -> None:
    then = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "f": 4, "g": 5}
    now = {"a": {"b": 1, "c": {"d": 6, "e": 3}}, "g": 5, "h": 7}
    only_then, only_now = identity.apart(then, now)
    assert only_then == {"a": {"c": {"d": 2}}, "f": 4, "h": None}
    assert only_now == {"a": {"c": {"d": 6}}, "f": None, "h": 7}


def test_a_moved_file_without_an_ending_is_known_by_its_hash(
    digits: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models.save(digits, "net")
    made = invert(invert_config(model="net", out="run"))
    Path("moved").mkdir()
    Path("net").rename("moved/net")
    assert invert(invert_config(model="moved/net", out="run")).images == made.images
    models.save(models.with_new_head(digits, num_classes=10), "moved/net")
    with pytest.raises(RunError, match="made with teacher"):
        invert(invert_config(model="moved/net", out="run"))


WISH = {"scale": 0.5, "weight": "auto", "stages": [], "seed": 0, "device": "auto"}
DECIDED = {"scale": "auto", "weight": 0.28, "stages": [1], "seed": 0, "device": "cpu"}


@pytest.mark.parametrize(
    ("requested", "others"),
    [
        (WISH, []),
        (WISH | {"weight": 0.28, "stages": [1]}, []),
        (DECIDED | {"device": "auto"}, []),
        (DECIDED, []),  # all of it, from the run's own file
        (WISH | {"scale": "auto"}, ["scale is 0.5 there and 'auto' here"]),
        (WISH | {"weight": 0.3}, ["weight is 0.28 there and 0.3 here"]),
        (DECIDED | {"seed": 1}, ["scale", "seed"]),
    ],
)
def test_what_became_of_a_wish_is_not_the_wish(requested: Any, others: list[str]) -> None:
    found = identity.differing(requested, then=WISH, decided=DECIDED)
    assert [line[: len(other)] for line, other in zip(found, others, strict=True)] == others


def test_a_default_folder_is_named_without_any_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for ending in identity.FILES:
        assert default_folder("invert", f"net{ending}", {}) == Path("runs/invert-net-1")
    assert default_folder("invert", "net.pkl", {}) == Path("runs/invert-net-1")


@pytest.mark.parametrize(("package", "source"), [("dreamkd", r"\."), ("timm", "timm")])
def test_a_source_that_is_not_installed_is_one_line(
    package: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == package:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(identity, "version", version)
    line = f"^{package} is not installed: python -m pip install {source}$"
    with pytest.raises(RunError, match=line):
        identity.versions()
