"""`invert` as a workflow: shards, manifest, resuming, refusing."""

import itertools
import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.datasets import ImageFolder

from dreamkd import manifest, models, preparation, shards, verification
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.distillation import distill
from dreamkd.engine import normalise
from dreamkd.errors import ConfigError, ModelError, NoBatchNormError, RunError, Stopped
from dreamkd.events import Event, Hint, Note, Progress, ignore
from dreamkd.formats import read_run
from dreamkd.inversion import Inversion, invert
from dreamkd.losses import jensen_shannon
from dreamkd.models import Classifier
from dreamkd.runs import Run
from tests.conftest import distill_config, invert_config

#: What another run of the same command must write again, byte for byte.
FACTS = ("resolved.json", "manifest.jsonl", "result.json", "contact-sheet.png")
STORED = ("shards", "images", "records")


def facts(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in FACTS]
    files += [p for name in STORED for p in sorted((folder / name).rglob("*")) if p.is_file()]
    return {path.name: path.read_bytes() for path in files}


def run(folder: Path, **given: object) -> Inversion:
    return invert(invert_config(out=str(folder), **given))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two batches of 20."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


def test_a_run_is_a_folder_of_shards_that_its_manifest_vouches_for(whole: Path) -> None:
    lines = manifest.read(whole / "manifest.jsonl")
    assert sorted(lines) == ["shard-000000.tar", "shard-000001.tar"]
    labels = []
    for name, shard in lines.items():
        shards.verify(whole / "shards" / name, shard)
        for sample in shards.read(whole / "shards" / name):
            labels.append(sample.label)
            assert sample.record["class_name"] == str(sample.label)
            assert 0 <= sample.record["teacher_probability"] <= 1
    assert sorted(labels) == sorted(list(range(10)) * 4)


def test_a_run_reads_back_as_data(whole: Path) -> None:
    images, labels = stack(
        open_images(str(whole), preprocessing=Preprocessing(input_size=(1, 16, 16)))
    )
    assert images.shape == (40, 1, 16, 16)
    assert torch.equal(labels.bincount(), torch.full((10,), 4))


def test_another_folder_holds_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert facts(tmp_path / "again") == facts(whole)


def test_a_rival_without_weight_has_no_part(whole: Path, tmp_path: Path) -> None:
    none = {"method": "adaptive", "student": "digits_resnet14", "competition": 0.0}
    run(tmp_path / "run", **none)
    for shard in (whole / "shards").iterdir():
        there = [sample.png for sample in shards.read(tmp_path / "run" / "shards" / shard.name)]
        assert there == [sample.png for sample in shards.read(shard)]


def test_what_an_unfinished_batch_left_is_gone_before_others_are_made(tmp_path: Path) -> None:
    """Killed before the manifest line of its second batch, and continued with fewer images."""
    folder = tmp_path / "run"
    run(folder, format="folder")
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(lines[0])
    (folder / "result.json").unlink()
    assert run(folder, format="folder", per_class=3).images == 30
    assert len([*(folder / "images").glob("*/*.png")]) == len([*read_run(folder)]) == 30


def test_a_stopped_run_continues_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder, polls = tmp_path / "run", iter([False] * 3 + [True])
    with pytest.raises(Stopped):
        invert(invert_config(out=str(folder)), should_stop=lambda: next(polls))
    assert [path.name for path in (folder / "shards").iterdir()] == ["shard-000000.tar"]
    heard: list[Event] = []
    invert(invert_config(out=str(folder)), on_event=heard.append)
    assert facts(folder) == facts(whole)
    (progress,) = [event for event in heard if isinstance(event, Progress)]
    assert (progress.done, progress.total) == (4, 4)  # of the whole run
    assert progress.terms["images"] == 20  # of this process


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_a_damaged_shard_is_named_and_made_again(whole: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "run"
    run(folder)
    path = folder / "shards" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flipped" else data[:3000])
    events: list[Event] = []
    invert(invert_config(out=str(folder)), on_event=events.append)
    assert any("shard-000001.tar" in getattr(event, "text", "") for event in events)
    assert facts(folder) == facts(whole)


def test_several_lost_shards_are_made_again_at_once(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run")
    for path in (tmp_path / "run" / "shards").iterdir():
        path.unlink()
    run(tmp_path / "run")
    assert facts(tmp_path / "run") == facts(whole)


def test_batches_missing_before_others_are_made_and_listed_in_order(
    whole: Path, tmp_path: Path
) -> None:
    """As several workers leave a run that is killed."""
    run(tmp_path / "run")
    listed = tmp_path / "run" / "manifest.jsonl"
    listed.write_text(listed.read_text().splitlines(keepends=True)[1])
    (tmp_path / "run" / "shards" / "shard-000000.tar").unlink()
    (tmp_path / "run" / "result.json").unlink()
    run(tmp_path / "run")
    assert facts(tmp_path / "run") == facts(whole)


def test_a_kill_before_the_contact_sheet_is_made_up_for(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / "contact-sheet.png").unlink()
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "shards" / ".shard-000001.tar.99.part").write_bytes(b"torn")
    run(tmp_path / "run")
    assert facts(tmp_path / "run") == facts(whole)


@pytest.fixture(scope="module")
def whole_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `whole` as class folders."""
    folder = tmp_path_factory.mktemp("whole") / "folders"
    run(folder, format="folder")
    return folder


def test_class_folders_hold_the_images_of_the_shards(whole: Path, whole_folders: Path) -> None:
    assert not (whole_folders / "shards").exists()
    pairs = list(zip(read_run(whole), read_run(whole_folders), strict=True))
    assert len(pairs) == 40
    for (image, label, record), (same_image, same_label, same_record) in pairs:
        assert torch.equal(image, same_image)
        assert (label, record) == (same_label, same_record)
    lines = [manifest.read(f / "manifest.jsonl").values() for f in (whole, whole_folders)]
    assert [s.pixels_sha256 for s in lines[0]] == [s.pixels_sha256 for s in lines[1]]
    sheets = [(f / "contact-sheet.png").read_bytes() for f in (whole, whole_folders)]
    assert sheets[0] == sheets[1]


def test_class_folders_read_back_as_data_and_by_torchvision(whole_folders: Path) -> None:
    preprocessing = Preprocessing(input_size=(1, 16, 16))
    images, labels = stack(open_images(str(whole_folders), preprocessing=preprocessing))
    theirs = ImageFolder(str(whole_folders / "images"))
    assert theirs.classes == [str(digit) for digit in range(10)]
    assert sorted(labels.tolist()) == theirs.targets
    assert images.shape == (40, 1, 16, 16)


def test_stopped_class_folders_continue_to_the_same_bytes(
    whole_folders: Path, tmp_path: Path
) -> None:
    folder, polls = tmp_path / "run", iter([False] * 3 + [True])
    config = invert_config(out=str(folder), format="folder")
    with pytest.raises(Stopped):
        invert(config, should_stop=lambda: next(polls))
    assert [path.name for path in (folder / "records").iterdir()] == ["batch-000000.jsonl"]
    # As if killed while it wrote the second batch: records, a PNG, a torn one; no manifest line.
    second = whole_folders / "records" / "batch-000001.jsonl"
    shutil.copy(second, folder / "records")
    file = json.loads(second.read_text().splitlines()[0])["file"]
    shutil.copy(whole_folders / "images" / file, folder / "images" / file)
    (folder / "images" / "3" / ".00000039.png.99.part").write_bytes(b"torn")
    (folder / "records" / ".batch-000002.jsonl.99.part").write_bytes(b"torn")
    invert(config)
    assert facts(folder) == facts(whole_folders)


@pytest.mark.parametrize("format_", ["shards", "folder"])
def test_what_a_longer_run_left_behind_when_it_was_killed_is_removed(
    tmp_path: Path, format_: str
) -> None:
    """It was killed before the manifest listed its batch, and the shorter command comes again."""
    given = {"out": str(tmp_path / "run"), "format": format_}
    invert(invert_config(**given))
    listed, wanted = (tmp_path / "run" / "manifest.jsonl").read_bytes(), facts(tmp_path / "run")
    invert(invert_config(**given, per_class=6))
    (tmp_path / "run" / "manifest.jsonl").write_bytes(listed)
    invert(invert_config(**given))
    assert facts(tmp_path / "run") == wanted
    assert len(list(read_run(tmp_path / "run"))) == 40
    assert len(list((tmp_path / "run").rglob("*.png"))) == (41 if format_ == "folder" else 1)


def test_damaged_class_folders_are_named_and_made_again(
    whole_folders: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_folders, folder)
    lost, cut = sorted((folder / "images").glob("[37]/*.png"))[::7]
    lost.unlink()
    os.truncate(cut, 40)
    events: list[Event] = []
    invert(invert_config(out=str(folder), format="folder"), on_event=events.append)
    texts = " ".join(getattr(event, "text", "") for event in events)
    assert f"{lost.name}" in texts
    assert facts(folder) == facts(whole_folders)


def test_the_format_is_part_of_the_run(whole: Path) -> None:
    with pytest.raises(RunError, match="format is 'shards' there and 'folder' here"):
        run(whole, format="folder")


def test_deepdream_needs_no_statistics(tmp_path: Path) -> None:
    result = run(tmp_path / "run", method="deepdream")
    settings = json.loads((tmp_path / "run" / "resolved.json").read_text())["config"]
    assert settings["r_feature"] == "auto"  # has no effect
    assert result.images == 40


def test_images_that_no_file_can_hold_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file of a run holds images of 1x16x4200"):
        run(tmp_path / "run", input_size="1,16,4200", per_class=1, r_feature=1.0)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-000000.tar").write_text("precious")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_finished_run_is_not_made_again(whole: Path) -> None:
    events: list[Event] = []
    invert(invert_config(out=str(whole)), on_event=events.append)
    assert not any(isinstance(event, Progress) for event in events)
    assert Note("it is finished: nothing is left to make") in events


def test_raising_per_class_keeps_every_old_shard(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder)
    result = run(folder, per_class=6)
    assert result.images == 60
    new = facts(folder)
    for name, data in facts(whole).items():
        if name.startswith("shard-"):
            assert new[name] == data
    assert new["manifest.jsonl"].startswith((whole / "manifest.jsonl").read_bytes())
    assert "shard-000002.tar" in new


def test_other_settings_are_refused_by_name(whole: Path) -> None:
    with pytest.raises(RunError, match="seed is 0 there and 1 here"):
        run(whole, seed=1)


def test_resolved_settings_make_the_same_shards(whole: Path, tmp_path: Path) -> None:
    settings = json.loads((whole / "resolved.json").read_text())["config"]
    # The ratio was turned into the weight; nothing competes and nothing is refined.
    competition = ["competition", "competition_loss", "competition_temperature"]
    left = [name for name, value in settings.items() if value == "auto"]
    refining = ["refine_lr", "refine_r_feature", "refine_steps"]
    assert left == [*competition, "r_feature_scale", *refining]
    run(tmp_path / "copy", **settings)
    for path in (whole / "shards").iterdir():
        assert (tmp_path / "copy" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_verifiers_judge_in_parts_that_fit(
    digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(256, (10, 1, 16, 16), dtype=torch.uint8)
    seen: list[int] = []
    module = digits.copy().module
    module.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    verifiers = verification.Verifiers({"copy": replace(digits, module=module)})
    whole = verifiers.predictions(images)["copy"]
    monkeypatch.setattr(verification, "_CHUNK", 4)
    assert torch.equal(verifiers.predictions(images)["copy"], whole)
    assert seen == [10, 4, 4, 2]


def test_a_verifier_whose_classes_stand_in_another_order_is_refused(
    digits: Classifier, tmp_path: Path
) -> None:
    file = str(tmp_path / "turned.safetensors")
    turned = replace(digits.card, class_names=digits.card.class_names[::-1])
    models.save(replace(digits, card=turned), file)
    with pytest.raises(ModelError, match=r"--verifier .*: its classes are in another order"):
        verification.Verifiers.load([file], teacher=digits, trust_pickle=False, on_event=ignore)


def test_verifiers_are_recorded_live_and_in_the_end(tmp_path: Path) -> None:
    heard: list[Event] = []
    config = invert_config(out=str(tmp_path / "run"), verifier="digits_resnet14")
    result = invert(config, on_event=heard.append)
    progress = [event for event in heard if isinstance(event, Progress)]
    first, last = [event for event in progress if event.phase == "invert"]
    assert (first.done, first.terms["images"]) == (2, 20)
    assert (last.done, last.total, last.terms["images"]) == (4, 4, 40)
    assert last.terms["digits_resnet14 %"] == pytest.approx(result.teacher_top1)
    assert last.terms["images/s"] > 0
    # The teacher as its own verifier sees what the teacher sees.
    assert result.verifiers == {"digits_resnet14": pytest.approx(result.teacher_top1)}
    (sample, *_) = shards.read(tmp_path / "run" / "shards" / "shard-000000.tar")
    assert sample.record["verifiers"] == {"digits_resnet14": sample.record["teacher_top1"]}


@pytest.mark.parametrize("method", ["deepinversion", "deepdream"])
def test_one_image_more_is_a_batch_of_its_own(tmp_path: Path, method: str) -> None:
    heard: list[Event] = []
    given = {"out": str(tmp_path / "run"), "classes": "3", "method": method}
    invert(invert_config(per_class=4, **given))
    before = facts(tmp_path / "run")["shard-000000.tar"]
    result = invert(invert_config(per_class=5, **given), on_event=heard.append)
    assert result.images == 5
    assert math.isfinite(result.r_feature_chance)
    assert facts(tmp_path / "run")["shard-000000.tar"] == before
    hints = [event.text for event in heard if isinstance(event, Hint)]
    alone = "a batch is of a single image, whose statistics are matched alone"
    assert hints == ([alone] if method == "deepinversion" else [])


def test_folders_of_some_classes_are_numbered_by_others_from_0(tmp_path: Path) -> None:
    heard: list[Event] = []
    for name, classes in (("some", "3,1"), ("all", "all")):
        given = {"classes": classes, "per_class": 2, "format": "folder"}
        invert(invert_config(out=str(tmp_path / name), **given), on_event=heard.append)
    hints = [event.text for event in heard if isinstance(event, Hint)]
    told = "2 of 10 classes are made: ImageFolder numbers those from 0, unlike the records"
    assert hints == [told]


def test_fewer_per_class_than_there_are_is_told(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    heard: list[Event] = []
    given = {"out": str(tmp_path / "run"), "per_class": 1}
    assert invert(invert_config(**given), on_event=heard.append).images == 40
    assert Hint("it holds 40 images, more than asked for, and keeps them") in heard


def test_a_scale_that_was_asked_for_is_not_forgotten(tmp_path: Path) -> None:
    given = {"out": str(tmp_path / "run"), "per_class": 2}
    invert(invert_config(r_feature_scale=0.5, **given))
    with pytest.raises(RunError, match=r"r_feature_scale is 0\.5 there and 'auto' here"):
        invert(invert_config(**given))


def test_classes_may_all_be_rarer_than_one_a_round(tmp_path: Path) -> None:
    """Rounds without an image have no labels, and no other kind of label."""
    rare = {"classes": "0-1", "class_weights": "0:0.5,1:0.2", "per_class": 10}
    assert run(tmp_path / "run", **rare).images == 7
    found = list(shards.read(tmp_path / "run" / "shards" / "shard-000000.tar"))
    assert sorted(sample.label for sample in found) == [0] * 5 + [1] * 2


def test_only_the_classes_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "run", classes="3,7-8", per_class=2)
    found = list(shards.read(tmp_path / "run" / "shards" / "shard-000000.tar"))
    assert sorted(sample.label for sample in found) == [3, 3, 7, 7, 8, 8]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"classes": "10"}, ConfigError, "'10' is not within 0-9"),
        ({"method": "deepdream", "r_feature": 1}, ConfigError, "no effect with --method deepdream"),
        ({"competition": 2.0}, ConfigError, "--competition has no effect with --method deepinv"),
        ({"method": "adaptive"}, ConfigError, "--method adaptive: needs the --student"),
        ({"r_feature": 1, "r_feature_scale": 1}, ConfigError, "no effect with --r-feature"),
        ({"images": "generator", "clip": "off"}, ConfigError, "--clip has no effect with --images"),
        ({"stages": "1,0"}, ConfigError, "--stages: the last one"),
        (
            {"stages": "1,1,1,1,1,1,1,1", "image_steps": 8},
            ModelError,
            "does not run on 2 images of 1x0x0",
        ),
        ({"class_weights": "3"}, ConfigError, "'3' is not CLASS:WEIGHT"),
        ({"class_weights": "11:1"}, ConfigError, "--class-weights: '11' is not within 0-9"),
        ({"class_weights": "0:nan"}, ConfigError, "'0:nan' is not CLASS:WEIGHT"),
        ({"classes": "1-2", "class_weights": "3:1"}, ConfigError, "class 3 is not among"),
        ({"class_weights": "0-9:0"}, ConfigError, "leave no image to make"),
        ({"bn_prior": "cifar10_resnet20"}, ModelError, "takes images of 3 channels"),
        ({"method": "adaptive", "student": "cifar10_resnet20"}, ModelError, "of 3 channels"),
        ({"image_warmup": 3}, ConfigError, "--image-warmup: 3 is above --image-steps 2"),
        ({"model": "no_such_net"}, ModelError, "no_such_net"),
        ({"verifier": "no_such_net"}, ModelError, "no_such_net"),
        ({"device": "cuda:99"}, ConfigError, "--device: 'cuda:99' is not here"),
        ({"device": "tpu"}, ConfigError, "--device: 'tpu' is not one of"),
        ({"precision": "fp16"}, ConfigError, "fp16 is for CUDA"),
    ],
    ids=str,
)
def test_bad_settings_create_nothing(
    tmp_path: Path, given: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_an_untrained_network_is_refused(tmp_path: Path) -> None:
    card = {"num_classes": 10, "input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    models.save(models.create("cifar_resnet8", **card), tmp_path / "fresh.safetensors")
    with pytest.raises(NoBatchNormError, match="look untrained"):
        run(tmp_path / "run", model=str(tmp_path / "fresh.safetensors"))
    assert not (tmp_path / "run").exists()


SEQUENTIAL = {
    "generator": {"images": "generator", "image_steps": 2, "refine_steps": 1},
    "average": {"bn_momentum": 0.8},
}


@pytest.mark.parametrize("how", SEQUENTIAL)
def test_what_is_carried_from_batch_to_batch_survives_a_stop(tmp_path: Path, how: str) -> None:
    settings = {**SEQUENTIAL[how], "per_class": 6}  # three batches of 20
    run(tmp_path / "whole", **settings)
    polls = iter([False] * 5 + [True])
    config = invert_config(out=str(tmp_path / "run"), **settings)
    with pytest.raises(Stopped):
        invert(config, should_stop=lambda: next(polls))
    assert (tmp_path / "run" / "state-images.safetensors").exists()
    run(tmp_path / "run", **settings)
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")


def test_what_goes_on_is_not_written_after_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving that takes a second waits for fifty, or for the end; the images do not wait."""
    saved: list[int] = []

    def save_state(_: Run, name: str, tensors: object, facts: dict[str, int]) -> None:
        assert name == "images"
        saved.append(facts["next"])

    seconds = itertools.count(1)
    monkeypatch.setattr(Run, "save_state", save_state)
    clock = SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr("dreamkd.sequence.time", clock)
    run(tmp_path / "run", **SEQUENTIAL["generator"], per_class=12)  # six batches of 20
    assert saved == [1, 6]


def test_a_batch_that_cannot_be_written_does_not_cost_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SEQUENTIAL["generator"], "per_class": 6}  # three batches of 20
    run(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        write = shards.Tars.write

        def full(self: shards.Tars, k: int, *given: Any) -> Any:
            if k == 1:
                raise RunError("the disk is full")
            return write(self, k, *given)

        patch.setattr(shards.Tars, "write", full)
        with pytest.raises(RunError, match="the disk is full"):
            run(tmp_path / "run", **settings)
    events: list[Event] = []
    invert(invert_config(out=str(tmp_path / "run"), **settings), on_event=events.append)
    assert not any(isinstance(event, Hint) for event in events)
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")


@pytest.mark.parametrize("how", SEQUENTIAL)
def test_killed_before_it_keeps_what_goes_on_a_sequential_run_ends_the_same(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SEQUENTIAL[how], "per_class": 6}
    run(tmp_path / "whole", **settings)

    def save_state(self: Run, name: str, tensors: object, facts: dict[str, int]) -> None:
        if facts["next"] == 3:  # every shard is in place
            raise KeyboardInterrupt
        kept(self, name, tensors, facts)

    with monkeypatch.context() as patch:
        kept = Run.save_state
        patch.setattr(Run, "save_state", save_state)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", **settings)
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 3
    run(tmp_path / "run", **settings)
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")
    states = [
        (tmp_path / name / "state-images.safetensors").read_bytes() for name in ("run", "whole")
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize("how", SEQUENTIAL)
@pytest.mark.parametrize("lost", ["first shard", "last shard", "state"])
def test_a_lost_file_of_a_sequential_run_is_made_up_for(
    tmp_path: Path, how: str, lost: str
) -> None:
    settings = {**SEQUENTIAL[how], "per_class": 6}
    run(tmp_path / "run", **settings)
    wanted = facts(tmp_path / "run")
    path = {
        "first shard": "shards/shard-000000.tar",
        "last shard": "shards/shard-000002.tar",
        "state": "state-images.safetensors",
    }[lost]
    (tmp_path / "run" / path).unlink()
    run(tmp_path / "run", **settings)
    assert facts(tmp_path / "run") == wanted


def test_batches_that_remember_differ_from_those_that_do_not(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", bn_momentum=0.8)
    ours, theirs = facts(tmp_path / "run"), facts(whole)
    assert ours["shard-000000.tar"] == theirs["shard-000000.tar"]  # nothing to remember yet
    assert ours["shard-000001.tar"] != theirs["shard-000001.tar"]


def test_competing_images_are_those_that_teacher_and_student_see_differently(
    digits: Classifier, tmp_path: Path
) -> None:
    """Section 3.3 of the paper, at equal steps; the student has learned most of the digits."""
    path = tmp_path / "student" / "student.safetensors"
    synthesis = dict.fromkeys(
        ("image_steps", "image_batch_size", "first_batches", "rounds"), "auto"
    )
    lesson = {"data": "sklearn:digits:train", "steps": 100, "batch_size": 64}
    distill(distill_config(out=str(path.parent), **synthesis, **lesson))
    settings = {"image_steps": 60, "image_batch_size": 50, "per_class": 5, "r_feature": 0.1}
    plain = run(tmp_path / "plain", verifier=str(path), **settings)
    rival = {"method": "adaptive", "student": str(path)}
    competing = run(tmp_path / "competing", verifier=str(path), **rival, **settings)
    assert min(plain.teacher_top1, competing.teacher_top1) >= 95
    assert competing.verifiers["student"] <= plain.verifiers["student"] - 10

    def disagreement(folder: Path) -> float:
        """JS of Eq. 8, nats."""
        sized = Preprocessing(input_size=(1, 16, 16))
        images, _ = stack(open_images(str(folder), preprocessing=sized))
        networks = (digits, models.load(str(path)))
        with torch.no_grad():
            logits = [
                network.module(normalise(images, mean=network.card.mean, std=network.card.std))
                for network in networks
            ]
        return float(jensen_shannon(*logits).mean())

    assert disagreement(tmp_path / "competing") > 2 * disagreement(tmp_path / "plain")


def test_classes_have_the_weights_asked_for(tmp_path: Path) -> None:
    result = run(tmp_path / "run", class_weights="3:2,7:0.5,0:0")
    labels = [
        sample.label
        for path in sorted((tmp_path / "run" / "shards").iterdir())
        for sample in shards.read(path)
    ]
    assert [labels.count(k) for k in range(10)] == [0, 4, 4, 8, 4, 4, 4, 2, 4, 4]
    assert result.images == len(labels) == 38


def test_an_option_of_each_kind_changes_the_images(whole: Path, tmp_path: Path) -> None:
    for number, given in enumerate(
        (
            {"images": "pyramid"},
            {"stages": "1,1"},
            {"crop": 0.3},
            {"keep": "best"},
            {"start": "pink"},
            {"seed": 1},
            {"precision": "bf16"},
            {"r_feature_scale": 50.0},
        )
    ):
        folder = tmp_path / str(number)
        run(folder, per_class=2, **given)
        assert facts(folder)["shard-000000.tar"] != facts(whole)["shard-000000.tar"], given


def test_images_of_a_run_are_not_cropped_for_whoever_looks(
    whole: Path, whole_folders: Path, digits: Classifier
) -> None:
    """They are of the network's size; photographs are cut to it as its authors did."""
    card = replace(digits.card, crop_pct=0.5)
    for folder in (whole, whole_folders):
        images = open_images(str(folder), preprocessing=Preprocessing.of(card)).wanted_by(card)
        assert images.preprocessing.crop_pct == 1.0
        stored = torch.stack([image for image, _, _ in read_run(folder)])
        assert torch.equal(stack(images)[0], stored)
        assert images.wanted_by(card, crop_pct=0.9).preprocessing.crop_pct == 0.9
    real = open_images("sklearn:digits", preprocessing=Preprocessing.of(card)).wanted_by(card)
    assert real.preprocessing.crop_pct == 0.5


def test_verbose_tells_what_was_decided(tmp_path: Path) -> None:
    heard: list[Event] = []
    config = invert_config(out=str(tmp_path / "run"), per_class=1, verbose=True)
    invert(config, on_event=heard.append)
    said = [event.text for event in heard if isinstance(event, Note)]
    assert "image_lr = 0.1 (decided)" in said
    assert not any(line.startswith("image_steps = ") for line in said)  # given


@pytest.mark.parametrize("earns", [True, False])
def test_auto_compiles_where_the_rule_says_so(
    earns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: compiled.append(step) or step)
    monkeypatch.setattr(preparation, "worth_compiling", lambda *_, **__: earns)
    run(tmp_path / "run", compile="auto", per_class=2)
    settings = json.loads((tmp_path / "run" / "resolved.json").read_text())["config"]
    assert settings["compile"] == ("on" if earns else "off")
    assert bool(compiled) is earns


def test_time_that_is_up_stops_it_and_the_same_command_continues(
    whole: Path, tmp_path: Path
) -> None:
    """Each process makes at least a batch, so that it ends however short the time."""
    manifest, made = tmp_path / "run" / "manifest.jsonl", 0
    while not (tmp_path / "run" / "result.json").exists():
        with suppress(Stopped):
            run(tmp_path / "run", max_minutes=1e-6)
        assert len(manifest.read_text().splitlines()) > made
        made += 1
    assert facts(tmp_path / "run") == facts(whole)
    with pytest.raises(Stopped):  # of three batches, the first is durable before the last begins
        run(tmp_path / "three", max_minutes=1e-6, per_class=6)


def test_it_computes_on_as_many_threads_as_asked(tmp_path: Path) -> None:
    seen: set[int] = set()
    before = torch.get_num_threads()

    def look(event: Event) -> None:
        if isinstance(event, Progress):
            seen.add(torch.get_num_threads())

    invert(invert_config(out=str(tmp_path / "run"), threads=before + 1), on_event=look)
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)


def test_class_names_count_and_not_the_file_they_lie_in(tmp_path: Path) -> None:
    names = [f"digit {k}" for k in range(10)]
    for name, lines in (("a.txt", names), ("b.txt", names), ("c.txt", names[::-1])):
        (tmp_path / name).write_text("\n".join(lines))
    for name in ("a.txt", "b.txt"):
        run(tmp_path / "run", class_names=str(tmp_path / name), per_class=2)
    with pytest.raises(RunError, match="class_names"):
        run(tmp_path / "run", class_names=str(tmp_path / "c.txt"), per_class=2)


def test_a_batch_above_the_chunk_is_cut_and_the_cut_recorded(tmp_path: Path) -> None:
    run(tmp_path / "run", image_chunk=7, per_class=2)
    settings = json.loads((tmp_path / "run" / "resolved.json").read_text())["config"]
    assert (settings["image_batch_size"], settings["image_chunk"]) == (20, 7)
    (line,) = shards_lines(tmp_path / "run")
    assert line["count"] == 20


def test_the_manifest_tells_the_level_that_chance_explains(whole: Path) -> None:
    for line in shards_lines(whole):
        assert 0 < line["r_feature_chance"] < line["r_feature"]  # two steps from noise
        assert set(line["terms"]) == {"ce", "r_feature"}


def test_statistics_of_another_network_serve_one_without(tmp_path: Path) -> None:
    vit = models.create(
        "timm:vit_tiny_patch16_224", num_classes=10, input_size=(1, 64, 64), mean=(0.5,), std=(0.5,)
    )
    models.save(vit, tmp_path / "vit.safetensors")
    path = str(tmp_path / "vit.safetensors")
    with pytest.raises(NoBatchNormError, match=r"it has no batch norm.*--bn-prior"):
        run(tmp_path / "run", model=path)
    assert not (tmp_path / "run").exists()
    result = run(tmp_path / "run", model=path, bn_prior="digits_resnet14", per_class=1)
    assert result.r_feature > 0
    # A transformer of one size runs at no other: the coarse stage of 64 px is left out.
    settings = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert settings["config"]["stages"] == [1]
    assert settings["bn_prior_sha256"] == models.load("digits_resnet14").sha256()


def shards_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
