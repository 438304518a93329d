"""Stored labels: every step's own, across files, stops and damage."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkd import models, softlabels
from dreamkd.config import DistillConfig, merge
from dreamkd.distillation import Distillation, distill
from dreamkd.errors import ConfigError, DataError, Stopped
from dreamkd.events import Hint
from dreamkd.identity import versions
from dreamkd.inversion import invert
from dreamkd.losses import SparseOutputs
from dreamkd.softlabels import SEGMENT, Recorder, Stored
from tests.conftest import PLAIN, invert_config


def label(step: int) -> SparseOutputs:
    return SparseOutputs(
        torch.full((2, 3), step, dtype=torch.int32), torch.full((2, 3), -step / 8).half()
    )


@pytest.mark.parametrize("stop", [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT])
def test_what_was_recorded_is_read_back_also_after_a_stop(tmp_path: Path, stop: int) -> None:
    total = 2 * SEGMENT + 5
    first = Recorder(tmp_path)
    first.begin(0)
    for step in range(stop + 3):  # what comes after the saved step is lost, or made again
        first.add(step, label(step))
        if step == stop - 1:
            first.flush()
    second = Recorder(tmp_path)
    second.begin(stop)
    for step in range(stop, total):
        second.add(step, label(step))
    second.flush()
    stored = Stored(tmp_path, device="cpu")
    for step in (0, SEGMENT + 7, stop, SEGMENT - 1, total - 1):
        for found, wanted in zip(stored.at(step), label(step), strict=True):
            assert torch.equal(found, wanted)
    with pytest.raises(DataError, match="labels of the teacher are missing"):
        stored.at(3 * SEGMENT)


@pytest.mark.parametrize(("kept", "step"), [(3, 5), (3, SEGMENT), (SEGMENT, SEGMENT + 1)])
def test_fewer_labels_than_steps_are_refused(tmp_path: Path, kept: int, step: int) -> None:
    recorder = Recorder(tmp_path)
    recorder.begin(0)
    for k in range(kept):
        recorder.add(k, label(k))
    recorder.flush()
    Recorder(tmp_path).begin(kept)
    with pytest.raises(DataError, match=rf"ends before step {step}|are missing"):
        Recorder(tmp_path).begin(step)


def test_a_run_of_labels_is_known_by_what_they_say(tmp_path: Path) -> None:
    """By every file of them: its name is the same in all runs."""
    facts = {"config": {"steps": SEGMENT + 2}, "store_labels": 3}
    facts |= {"teacher": dict.fromkeys(softlabels.CARD)}
    facts |= {"versions": dict.fromkeys(softlabels.DRAWN_BY)}
    hashes = []
    for name, other in (("a", -1), ("b", -1), ("c", 0), ("d", SEGMENT + 1)):
        recorder = Recorder(tmp_path / name)
        (tmp_path / name).mkdir()
        recorder.begin(0)
        for step in range(SEGMENT + 2):
            recorder.add(step, label(step + (step == other)))
        recorder.flush()
        (tmp_path / name / "resolved.json").write_text(json.dumps(facts))
        (tmp_path / name / "result.json").write_text("{}")
        found = softlabels.require_same(tmp_path / name, {})
        assert found.outputs == 3
        hashes.append(found.sha256)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


SETTINGS: dict[str, Any] = {
    **PLAIN,
    "teacher": "digits_resnet14",
    "student": "cifar_resnet8",
    "steps": 80,
    "batch_size": 16,
}


def run(folder: Path, made: Path, **given: Any) -> Distillation:
    return distill(
        merge(DistillConfig, {**SETTINGS, "data": str(made), "out": str(folder), **given})
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    invert(invert_config(out=str(folder)))
    return folder


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose labels hold all ten classes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, made, store_labels=10)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return models.load(folder / "student.safetensors").module.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_storing_changes_nothing_and_the_labels_stand_for_the_teacher(
    made: Path, whole: Path, tmp_path: Path
) -> None:
    run(tmp_path / "plain", made)
    assert same(weights(tmp_path / "plain"), weights(whole))
    # At a rate at which 80 steps do not yet magnify what half precision rounds off.
    run(tmp_path / "asked", made, lr=1e-4)
    run(tmp_path / "told", made, lr=1e-4, labels=str(whole))
    run(tmp_path / "still", made, lr=1e-12)
    asked, told, start = (weights(tmp_path / name) for name in ("asked", "told", "still"))
    assert not same(asked, told)
    moved, off = (
        math.sqrt(sum(float((a[n].float() - asked[n].float()).square().sum()) for n in asked))
        for a in (start, told)
    )
    assert off < 0.02 * moved
    run(tmp_path / "other", made, labels=str(whole), student="cifar_resnet14")
    # 80 steps of 16 images with ten outputs of six bytes each, and two headers.
    bytes_ = sum(path.stat().st_size for path in (whole / "labels").iterdir())
    assert softlabels.room(10, 80 * 16) == 80 * 16 * 10 * 6
    assert 80 * 16 * 10 * 6 < bytes_ < 80 * 16 * 10 * 6 + 2000
    assert softlabels.written(whole) == bytes_


def test_stopped_it_stores_the_same_bytes(made: Path, whole: Path, tmp_path: Path) -> None:
    left = iter([False] * 69 + [True])
    config = merge(
        DistillConfig,
        {**SETTINGS, "data": str(made), "out": str(tmp_path / "run"), "store_labels": 10},
    )
    with pytest.raises(Stopped):
        distill(config, should_stop=lambda: next(left))
    distill(config)
    for path in (whole / "labels").iterdir():
        assert (tmp_path / "run" / "labels" / path.name).read_bytes() == path.read_bytes()
    assert same(weights(tmp_path / "run"), weights(whole))


@pytest.mark.parametrize("damage", ["first", "last", "lost", "renamed"])
def test_damaged_labels_are_made_again(
    made: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    run(tmp_path / "run", made, store_labels=10)
    first, last = sorted((tmp_path / "run" / "labels").iterdir())
    if damage in ("first", "last"):
        path = first if damage == "first" else last
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    elif damage == "lost":
        last.unlink()
    else:
        last.write_bytes(first.read_bytes())
    hints: list[str] = []
    config = merge(
        DistillConfig,
        {**SETTINGS, "data": str(made), "out": str(tmp_path / "run"), "store_labels": 10},
    )
    distill(config, on_event=lambda e: hints.append(e.text) if isinstance(e, Hint) else None)
    assert any("the student is trained again" in hint for hint in hints)
    for path in (whole / "labels").iterdir():
        assert (tmp_path / "run" / "labels" / path.name).read_bytes() == path.read_bytes()
    assert same(weights(tmp_path / "run"), weights(whole))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"steps": 60, "batch_size": 32}, "steps is 80 there and 60 here; batch size is 16"),
        ({"cutmix": 0.5}, "cutmix is 0.0 there and 0.5 here"),
        ({"data": "sklearn:digits"}, "data pixels sha256 is"),
        ({"mean": (0.3,)}, r"teacher mean is \[0.305\] there and \[0.3\] here"),
        ({"labels": "."}, "is no run of dreamkd distill"),
        ({"store_labels": 3}, "would only copy those of --labels"),
    ],
    ids=str,
)
def test_labels_of_other_views_are_refused(
    given: dict[str, Any], line: str, made: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=line):
        run(tmp_path / "run", made, **{"labels": str(whole), **given})
    assert not (tmp_path / "run").exists()


DECISIVE = {
    "config": ("seed", "batch_size", "student_flip", "cutmix", "temperature"),
    "teacher": ("architecture", "mean", "std"),
    "versions": ("dreamkd", "torch"),
}


def test_every_fact_that_views_and_labels_depend_on_is_compared(
    made: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "other")
    resolved = json.loads((whole / "resolved.json").read_text())
    for part, names in DECISIVE.items():
        resolved[part] |= dict.fromkeys(names, "other")
    (tmp_path / "other" / "resolved.json").write_text(json.dumps(resolved))
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", made, labels=str(tmp_path / "other"))
    settings, card, packages = DECISIVE.values()
    named = [*settings, *(f"teacher {name}" for name in card), *(f"{p} version" for p in packages)]
    for name in named:
        assert f"{name.replace('_', ' ')} is 'other' there and " in str(caught.value)


def test_labels_of_another_torch_are_refused(
    made: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might draw other views."""
    monkeypatch.setattr("dreamkd.materials.versions", lambda: versions() | {"torch": "1.0"})
    with pytest.raises(ConfigError, match=r"torch version is '.+' there and '1.0' here"):
        run(tmp_path / "run", made, labels=str(whole))


def test_labels_of_an_unfinished_run_are_refused(made: Path, whole: Path, tmp_path: Path) -> None:
    resolved = json.loads((whole / "resolved.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "resolved.json").write_text(json.dumps(resolved))
    with pytest.raises(ConfigError, match="is not finished, or was made without --store-labels"):
        run(tmp_path / "run", made, labels=str(tmp_path / "other"))


def test_labels_of_which_a_file_is_missing_are_refused(
    made: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "other")
    first, *_ = sorted((tmp_path / "other" / "labels").iterdir())
    first.unlink()
    with pytest.raises(ConfigError, match=rf"of its labels {first.name} are missing"):
        run(tmp_path / "run", made, labels=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()


def test_more_labels_than_classes_take_no_more_room(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=4 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run(tmp_path / "run", made, store_labels=65536, steps=8).steps == 8


def test_a_budget_that_is_too_short_leaves_no_folder(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not enough to time the work"):
        run(tmp_path / "run", made, steps="auto", store_labels=3, budget_minutes=0.001)
    assert not (tmp_path / "run").exists()


def test_labels_without_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="labels are of given images; give --data"):
        merge(DistillConfig, {"teacher": "t", "student": "s", "store_labels": 5})
