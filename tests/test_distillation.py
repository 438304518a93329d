"""`distill` as a workflow: the adaptive loop, existing shards, resuming, the result."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreamkd import models, shards, states
from dreamkd.batch import Batch
from dreamkd.config import DistillConfig, merge
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.distillation import Distillation, distill
from dreamkd.engine import memory
from dreamkd.errors import ConfigError, DataError, ModelError, RunError, Stopped
from dreamkd.events import Event, Finished, Hint, Note, Progress
from dreamkd.examples import read_labelled
from dreamkd.inversion import invert
from dreamkd.materials import Materials
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.networks import Networks, Own
from dreamkd.preparation import settled
from dreamkd.sequence import Chain
from tests.conftest import PLAIN, distill_config, invert_config
from tests.reliability.kills import facts


def run(folder: Path, **given: object) -> Distillation:
    return distill(distill_config(out=str(folder), **given))


def run_offline(folder: Path, **given: object) -> Distillation:
    """Without the options of synthesis, which are refused beside --data."""
    settings = {"teacher": "digits_resnet14", "student": "cifar_resnet8", "steps": 12}
    return distill(merge(DistillConfig, {**PLAIN, **settings, "out": str(folder), **given}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run: two plain batches, two against the student."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, eval_data="sklearn:digits")
    return folder


GENERATED = {"recipe": "generator", "refine_steps": 2}


@pytest.fixture(scope="module")
def whole_generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of a generator, whose pixels are refined."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, **GENERATED)
    return folder


#: Measured, and nothing else.
QUIET = {"eval_data": "sklearn:digits", "noise_baseline": "off", "rounds": 0, "first_batches": 1}


def evaluated(student: str) -> float:
    images, labels = stack(
        open_images("sklearn:digits", preprocessing=Preprocessing(input_size=(1, 16, 16)))
    )
    return measure(models.load(student), images, labels).top1


def manifest(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_the_competition_begins_after_the_first_bank(whole: Path) -> None:
    competes = ["competition" in line["terms"] for line in manifest(whole)]  # type: ignore[operator]
    assert competes == [False, False, True, True]


def test_the_result_has_teacher_student_and_noise(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    assert result["teacher_top1"] == pytest.approx(98.5)
    for name in ("student_top1", "noise_top1", "agreement"):
        assert 0 <= result[name] <= 100
    assert result["data_free"] is True
    assert result["images"] == 80
    assert result["image_source"] == "made from digits_resnet14"


def test_the_curve_is_of_the_student_as_it_learned(whole: Path, tmp_path: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    # Two rounds in two thirds of 12 steps, one as long after them.
    assert [point["step"] for point in result["curve"]] == [4, 8, 12]
    assert [point["images"] for point in result["curve"]] == [40, 60, 80]
    assert result["best_top1"] == max(point["top1"] for point in result["curve"])
    # Being measured less often changes nothing.
    measured = {"eval_data": "sklearn:digits", "noise_baseline": "off"}
    coarse = run(tmp_path / "run", eval_every=2, **measured)
    assert [point["step"] for point in coarse.curve] == [8, 12]
    assert coarse.curve[0]["top1"] == result["curve"][1]["top1"]
    assert coarse.student_top1 == result["student_top1"] == result["curve"][-1]["top1"]


def test_what_was_measured_stays_where_nothing_is_measured(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    wanted = json.loads((whole / "result.json").read_text())
    run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == wanted


def test_the_curve_is_of_one_set_of_images(tmp_path: Path) -> None:
    others = run(tmp_path / "run", eval_data="sklearn:digits:train", noise_baseline="off")
    assert len(others.curve) == 3
    found = run(tmp_path / "run", eval_data="sklearn:digits", noise_baseline="off")
    assert [point["step"] for point in found.curve] == [12]
    assert found.best_top1 == found.student_top1


def test_a_process_that_measures_nothing_keeps_the_curve(tmp_path: Path) -> None:
    heard: list[Event] = []

    def past_the_first_point() -> bool:
        return any(isinstance(event, Note) and "step 4:" in event.text for event in heard)

    def past_the_next() -> bool:
        return any(
            isinstance(event, Progress) and event.phase == "student" and event.done == 8
            for event in heard
        )

    for data, asked in (("sklearn:digits", past_the_first_point), (None, past_the_next)):
        config = distill_config(out=str(tmp_path / "run"), eval_data=data)
        with pytest.raises(Stopped):
            distill(config, on_event=heard.append, should_stop=asked)
    found = run(tmp_path / "run", eval_data="sklearn:digits", noise_baseline="off")
    assert [point["step"] for point in found.curve] == [4, 8, 12]


def test_a_stop_while_the_student_is_measured_loses_no_point(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distill_config(out=str(tmp_path / "run"), eval_data="sklearn:digits")
    asked: list[bool] = []

    def interrupted(*_: object, on_batch: Callable[[], None]) -> None:
        asked.append(True)
        on_batch()

    for _ in range(2):  # the second time before a step is taken
        with monkeypatch.context() as patch:
            patch.setattr("dreamkd.job.measure", interrupted)
            with pytest.raises(Stopped, match="of the student is saved; the same command"):
                distill(config, should_stop=lambda: bool(asked))
        asked.clear()
    found = distill(config)
    wanted = json.loads((whole / "result.json").read_text())
    for a, b in zip(found.curve, wanted["curve"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert facts(tmp_path / "run") == facts(whole)


def test_a_student_goes_on_from_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    student = str(whole / "student.safetensors")
    before = evaluated(student)
    found = run(tmp_path / "run", student=student, steps=1, warmup=0, lr=1e-9, **QUIET)
    assert found.student_top1 == pytest.approx(before, abs=2)
    assert found.data_free
    # The teacher is a checkpoint that real images made.
    found = run(tmp_path / "real", student="digits_resnet14", steps=1, warmup=0, lr=1e-9, **QUIET)
    assert not found.data_free
    assert found.student_top1 == pytest.approx(98.5, abs=2)


@pytest.mark.parametrize(
    ("names", "given", "error", "line"),
    [
        ("abcdefg", {}, ModelError, r"has 7 classes \(a, b, c, …\), but .*14 has 10"),
        ("1023456789", {}, ModelError, r"classes are in another order \(1, 0, 2, …\) than those"),
        ("0123456789", {"student_pretrained": True}, ConfigError, "has no effect with --student"),
    ],
)
def test_a_student_that_does_not_go_with_the_teacher_is_refused(
    names: str, given: dict[str, object], error: type[Exception], line: str, tmp_path: Path
) -> None:
    other = models.create(
        "cifar_resnet8",
        num_classes=len(names),
        class_names=tuple(names),
        input_size=(1, 16, 16),
        mean=(0.5,),
        std=(0.5,),
    )
    models.save(other, tmp_path / "other.safetensors")
    with pytest.raises(error, match=line):
        run(tmp_path / "run", student=str(tmp_path / "other.safetensors"), **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [1000, 7])
def test_a_pretrained_student_starts_from_its_library_s_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    """A hub's cache with weights in it, and a teacher of as many classes, or of fewer."""
    size = {"pretrained": False, "input_size": (3, 32, 32)}
    student, teacher = (
        models.load("torchvision:resnet18", num_classes=count, **size) for count in (1000, classes)
    )
    with torch.no_grad():
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            teacher.module.train()(torch.randn(8, 3, 32, 32, generator=generator))
        student.module.fc.bias.fill_(7.0)
        student.module.bn1.bias.fill_(0.7)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(student.module.state_dict(), cache / "resnet18-f37072fd.pth")
    models.save(teacher, tmp_path / "teacher.safetensors")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = run(
        tmp_path / "run",
        teacher=str(tmp_path / "teacher.safetensors"),
        student="torchvision:resnet18",
        student_pretrained=True,
        input_size=(3, 32, 32),
        r_feature=1.0,
        lr=1e-9,
        steps=1,
        warmup=0,
        rounds=0,
        first_batches=1,
        recipe="adaptive",
    )
    assert not found.data_free
    made = models.load(found.student)
    learned = made.module.state_dict()
    assert torch.allclose(learned["bn1.bias"], torch.full((64,), 0.7), atol=1e-3)
    assert bool((learned["fc.bias"] > 6.9).all()) is (classes == 1000)
    # As it was measured: on pictures as the teacher sees them.
    assert (made.card.num_classes, made.card.crop_pct) == (classes, teacher.card.crop_pct)


def test_the_student_loads_alone(whole: Path) -> None:
    student = models.load(str(whole / "student.safetensors"))
    assert student.card.architecture == "timm:cifar_resnet8"
    assert student.card.input_size == (1, 16, 16)
    assert student.card.data_free
    assert student.module(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


# A run polls after every step: 2 of each of 4 image batches, 12 of the student, 12 on noise; and
# while it measures, last of all what it made.
@pytest.mark.parametrize("polls", [1, 3, 6, 9, 12, 14, 17, 20, 26, 32, 37, 40])
def test_stopped_anywhere_it_continues_to_the_same_bytes(
    whole: Path, tmp_path: Path, polls: int
) -> None:
    left = iter([False] * (polls - 1) + [True])
    config = distill_config(out=str(tmp_path / "run"), eval_data="sklearn:digits")
    with pytest.raises(Stopped):
        distill(config, should_stop=lambda: next(left))
    distill(config)
    assert facts(tmp_path / "run") == facts(whole)


def test_out_of_time_it_stops_and_goes_on_to_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="the same command continues") as stopped:
        run(folder, eval_data="sklearn:digits", max_minutes=1e-6)
    assert stopped.value.exit_code == 8
    run(folder, eval_data="sklearn:digits", max_minutes=60)
    assert facts(folder) == facts(whole)


def test_however_short_the_time_each_process_takes_it_a_piece_further(tmp_path: Path) -> None:
    """Two batches, two student steps, and what is measured before, between and after them."""
    short = {"first_batches": 1, "rounds": 1, "steps": 2, "image_steps": 2, "batch_size": 8}
    short |= {"noise_baseline": "on", "eval_data": "sklearn:digits", "eval_every": 1, "warmup": 0}
    expected = run(tmp_path / "whole", **short)
    stops = 0
    while stops < 20:
        try:
            found = run(tmp_path / "run", max_minutes=1e-6, **short)
            break
        except Stopped:
            stops += 1
    assert 4 <= stops <= 8  # of two batches, two steps of the student, and two on noise
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")
    assert (found.student_top1, found.noise_top1) == (expected.student_top1, expected.noise_top1)
    assert [p["step"] for p in found.curve] == [p["step"] for p in expected.curve]
    assert found.synthesis_seconds > 0


@pytest.mark.parametrize("polls", [1, 4, 7, 9, 14, 27])
def test_the_generator_recipe_continues_to_the_same_bytes(
    whole_generated: Path, tmp_path: Path, polls: int
) -> None:
    """Stopped in a batch, after one, and while the student learns: of 16 and 12 steps."""
    left = iter([False] * (polls - 1) + [True])
    config = distill_config(out=str(tmp_path / "run"), **GENERATED)
    with pytest.raises(Stopped):
        distill(config, should_stop=lambda: next(left))
    distill(config)
    assert facts(tmp_path / "run") == facts(whole_generated)
    resolved = json.loads((tmp_path / "run" / "resolved.json").read_text())["config"]
    assert (resolved["images"], resolved["competition_loss"]) == ("generator", "kl")


@pytest.mark.parametrize("damage", ["bit", "cut", "facts"])
def test_a_damaged_state_is_named_and_made_again(whole: Path, tmp_path: Path, damage: str) -> None:
    left = iter([False] * 20 + [True])
    config = distill_config(out=str(tmp_path / "run"), eval_data="sklearn:digits")
    with pytest.raises(Stopped):
        distill(config, should_stop=lambda: next(left))
    path = tmp_path / "run" / "state-student.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-1000] ^= 1
    elif damage == "cut":
        del data[-1000:]
    else:
        data = data.replace(b'"sha256"', b'"sha257"')
    path.write_bytes(data)
    events: list[Event] = []
    distill(config, on_event=events.append)
    hints = [event.text for event in events if isinstance(event, Hint)]
    assert any("state-student" in text and "made again" in text for text in hints)
    assert facts(tmp_path / "run") == facts(whole)


def test_killed_when_all_images_are_there_the_student_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the generator handed on was saved early, and is needed no more."""
    settings = {"recipe": "generator", "refine_steps": 2, "ema": 0.9, "rounds": 2}
    run(tmp_path / "whole", **settings)

    def keep(self: Chain, k: int, batch: Batch, *, start: int) -> None:
        kept(self, k, batch, start=start)
        if k == 3:  # the last of four
            self._bank.flush()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        kept = Chain.keep
        patch.setattr(Chain, "keep", keep)
        patch.setattr("dreamkd.clock._RATIO", 1e9)  # after the first, none is due
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", **settings)
    run(tmp_path / "run", **settings)
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")


def test_a_kill_loses_no_seconds_of_the_batches_that_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the state, which has them too, was not yet saved."""
    told = tmp_path / "seconds.json"
    spent: list[float] = []

    def keep(self: Chain, k: int, batch: Batch, *, start: int) -> None:
        kept(self, k, batch, start=start)
        self._bank.flush()
        spent.append(json.loads(told.read_text())["synthesis_seconds"])
        if k == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        kept = Chain.keep
        patch.setattr(Chain, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert not (tmp_path / "state-student.safetensors").exists()
    assert 0 < spent[0] < spent[1]
    seconds = run(tmp_path).synthesis_seconds
    assert seconds > spent[1]
    told.write_text("damaged")
    assert run(tmp_path).synthesis_seconds == seconds


def test_a_phase_ends_with_the_seconds_of_this_process(tmp_path: Path) -> None:
    """A run that others worked at for days is taken up again, and is finished."""
    short = {"rounds": 0, "first_batches": 1, "steps": 1, "warmup": 0}
    run(tmp_path, **short)
    (tmp_path / "seconds.json").write_text('{"synthesis_seconds": 1e6}')
    heard: list[Event] = []
    found = distill(distill_config(out=str(tmp_path), **short), on_event=heard.append)
    (finished,) = [event for event in heard if isinstance(event, Finished)]
    assert finished.phase == "distill"
    assert 0 < finished.seconds < 1e6 <= found.seconds


def test_a_lost_shard_trains_the_student_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = distill_config(out=str(folder), eval_data="sklearn:digits")
    distill(config)
    (folder / "shards" / "shard-000002.tar").unlink()
    events: list[Event] = []
    distill(config, on_event=events.append)
    assert any("trained again" in event.text for event in events if isinstance(event, Hint))
    assert facts(folder) == facts(whole)


def test_a_lost_shard_of_the_first_bank_is_just_made_again(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = distill_config(out=str(folder), eval_data="sklearn:digits")
    distill(config)
    (folder / "shards" / "shard-000000.tar").unlink()
    events: list[Event] = []
    distill(config, on_event=events.append)
    assert not any(event.phase == "student" for event in events if isinstance(event, Progress))
    assert facts(folder) == facts(whole)


def test_without_competition_the_student_does_not_matter(tmp_path: Path) -> None:
    run(tmp_path / "a", competition=0)
    run(tmp_path / "b", competition=0, lr=0.01)
    assert [line["sha256"] for line in manifest(tmp_path / "a")] == [
        line["sha256"] for line in manifest(tmp_path / "b")
    ]


@pytest.mark.parametrize(
    "option",
    [
        {"competition": 5.0},
        {"competition_temperature": 3.0},
        {"competition_loss": "kl"},
        {"temperature": 9.0},
        {"ema": 0.9},
        {"bn_recalibration": 2},
        GENERATED,
        {"rounds": 1},
        {"first_batches": 3},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_no_option_of_the_loop_is_without_effect(
    whole: Path, tmp_path: Path, option: dict[str, object]
) -> None:
    run(tmp_path / "run", **option)
    assert facts(tmp_path / "run")["student.safetensors"] != facts(whole)["student.safetensors"]


def test_the_statistics_of_another_network_may_be_matched(whole: Path, tmp_path: Path) -> None:
    other = models.create(
        "cifar_resnet8", num_classes=10, input_size=(1, 16, 16), mean=(0.5,), std=(0.5,)
    )
    with torch.no_grad():
        other.module.train()(torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    models.save(other, tmp_path / "other.safetensors")
    run(tmp_path / "run", bn_prior=str(tmp_path / "other.safetensors"))
    assert facts(tmp_path / "run")["student.safetensors"] != facts(whole)["student.safetensors"]


@pytest.mark.parametrize("wanted", ["on", "off", "auto"])
def test_the_noise_baseline_is_trained_when_asked_for(tmp_path: Path, wanted: str) -> None:
    given = {"rounds": 0, "first_batches": 1, "steps": 1, "warmup": 0}
    found = run(tmp_path / "run", eval_data="sklearn:digits", noise_baseline=wanted, **given)
    assert (found.noise_top1 is None) is (wanted == "off")
    resolved = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert resolved["config"]["noise_baseline"] == ("off" if wanted == "off" else "on")


@pytest.mark.parametrize("spec", ["made", "made/shards", "made/shards/*.tar"])
def test_offline_trains_on_shards_that_exist(tmp_path: Path, spec: str) -> None:
    invert(invert_config(out=str(tmp_path / "made")))
    result = run_offline(tmp_path / "run", data=str(tmp_path / spec))
    assert result.images == 40
    assert result.data_free
    assert result.synthesis_seconds == 0
    assert result.noise_top1 is None


@pytest.mark.parametrize(("split", "hints"), [("train", 1), ("test", 0)])
def test_measuring_on_what_trained_is_told(tmp_path: Path, split: str, hints: int) -> None:
    heard: list[Event] = []
    given = {"data": "sklearn:digits:train", "eval_data": f"sklearn:digits:{split}", "steps": 1}
    config = {"teacher": "digits_resnet14", "student": "cifar_resnet8", "noise_baseline": "off"}
    out = {"out": str(tmp_path / "run"), "warmup": 0}
    distill(merge(DistillConfig, {**PLAIN, **config, **given, **out}), on_event=heard.append)
    said = [event.text for event in heard if isinstance(event, Hint)]
    assert sum("--eval-data measures on what --data trains on" in line for line in said) == hints


def test_a_network_of_one_class_teaches_nothing(tmp_path: Path) -> None:
    alone = models.load("cifar_resnet8", pretrained=False, num_classes=1, input_size=(1, 16, 16))
    alone.module.train()(torch.rand(8, 1, 16, 16))  # statistics of something
    models.save(alone, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="it has one class, and a softmax"):
        run(tmp_path / "run", teacher=str(tmp_path / "one.safetensors"), r_feature=1.0)
    assert not (tmp_path / "run").exists()


def test_shards_of_several_runs_are_data_free_if_all_of_them_are(tmp_path: Path) -> None:
    for seed in range(2):
        invert(invert_config(out=str(tmp_path / f"job-{seed}"), seed=seed))
    jobs = str(tmp_path / "job-*" / "shards" / "*.tar")
    result = run_offline(tmp_path / "run", data=jobs)
    assert (result.images, result.data_free) == (80, True)
    rival = {"method": "adaptive", "student": "digits_resnet14"}
    invert(invert_config(out=str(tmp_path / "job-2"), **rival))
    result = run_offline(tmp_path / "other", data=jobs)
    assert (result.images, result.data_free) == (120, False)


@pytest.mark.parametrize("spec", ["made", "made/images"])
def test_offline_trains_on_class_folders_that_exist(tmp_path: Path, spec: str) -> None:
    invert(invert_config(out=str(tmp_path / "made"), format="folder"))
    result = run_offline(tmp_path / "run", data=str(tmp_path / spec))
    assert result.images == 40
    assert result.data_free


def test_class_folders_put_into_a_run_are_no_images_of_it(tmp_path: Path) -> None:
    invert(invert_config(out=str(tmp_path / "made"), format="folder"))
    (tmp_path / "made" / "records").rename(tmp_path / "elsewhere")
    assert not run_offline(tmp_path / "run", data=str(tmp_path / "made" / "images")).data_free


def test_a_bank_that_memory_cannot_hold_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 80 * 256 - 1)
    with pytest.raises(RunError, match=r"80 images take 20 KiB of memory.*lower --rounds"):
        run(tmp_path / "run")
    with pytest.raises(RunError, match=r"sklearn:digits holds too many"):
        run(tmp_path / "run", eval_data="sklearn:digits")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("baseline", ["off", "on"])
def test_what_is_left_is_told_of_the_whole_job(baseline: str, tmp_path: Path) -> None:
    heard: list[Event] = []
    given = {
        "noise_baseline": baseline,
        "eval_data": "sklearn:digits" if baseline == "on" else None,
    }
    config = distill_config(recipe="adaptive", out=str(tmp_path / "run"), **given)
    distill(config, on_event=heard.append)
    told = {
        phase: [event.left for event in events]
        for phase, events in itertools.groupby(
            (event for event in heard if isinstance(event, Progress)), lambda event: event.phase
        )
    }
    first, fresh, last = told["images 1 of 4"], told["images 4 of 4"], told["student"][-1]
    assert first == [None] * len(first)  # of the student's steps nothing is known
    assert None not in (fresh[-1], last)
    assert fresh[-1] > last  # steps are left after the last batch
    assert (last > 0) == (baseline == "on")  # another student's
    assert told.get("noise", [0])[-1] == 0


def test_moved_and_called_from_elsewhere_it_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Classifier
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        models.save(digits, tmp_path / name / "t.safetensors")
    run(tmp_path / "run", teacher=str(tmp_path / "a" / "t.safetensors"))
    heard: list[Event] = []
    moved = distill_config(teacher=str(tmp_path / "b" / "t.safetensors"), out=str(tmp_path / "run"))
    distill(moved, on_event=heard.append)
    assert {event.phase for event in heard if isinstance(event, Progress)} == {"images read"}
    models.save(models.with_new_head(digits, num_classes=10), tmp_path / "b" / "t.safetensors")
    with pytest.raises(RunError, match="made with teacher"):
        distill(moved)


def test_a_network_of_one_s_own_teaches(tmp_path: Path, digits: Classifier) -> None:
    own = Classifier.of(
        digits.module,
        name="mine",
        num_classes=10,
        input_size=(1, 16, 16),
        mean=digits.card.mean,
        std=digits.card.std,
    )
    run(tmp_path / "known")
    distill(distill_config(teacher="mine", out=str(tmp_path / "own")), own=Own(own))
    students = [models.load(tmp_path / name / "student.safetensors") for name in ("known", "own")]
    assert students[0].sha256() == students[1].sha256()


def test_a_network_of_one_s_own_learns(tmp_path: Path, digits: Classifier) -> None:
    """A copy of it, from the weights it has; the run knows it by them."""
    sized = {"num_classes": 10, "input_size": (1, 16, 16), "mean": (0.3,), "std": (0.3,)}
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    own = Classifier.of(linear, name="mine", **sized)
    before = own.sha256()
    config = distill_config(student="mine", out=str(tmp_path / "run"), competition=0)
    distill(config, own=Own(student=own))
    trained = load_file(tmp_path / "run" / "student.safetensors")
    assert own.sha256() == before
    assert trained.keys() == linear.state_dict().keys()
    assert not torch.equal(trained["1.weight"], linear.state_dict()["1.weight"])
    with torch.no_grad():
        linear[1].weight += 1
    with pytest.raises(RunError, match="made with student_sha256"):
        distill(config, own=Own(student=own))
    linear.requires_grad_(False)
    with pytest.raises(ModelError, match="--student mine: none of its parameters learns"):
        distill(distill_config(student="mine", out=str(tmp_path / "other")), own=Own(student=own))
    assert not (tmp_path / "other").exists()
    small = Classifier.of(linear, name="mine", **{**sized, "num_classes": 9})
    with pytest.raises(ModelError, match=r"--student own:mine has 9 classes, but .*14 has 10"):
        distill(distill_config(student="mine", out=str(tmp_path / "other")), own=Own(student=small))


class Spare(torch.nn.Module):
    """A linear network with a second head, which nothing asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = torch.nn.Linear(256, 10), torch.nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def test_a_parameter_that_does_not_reach_the_logits_stays(tmp_path: Path) -> None:
    """Also where the optimiser's moments were saved and restored."""
    sized = {"num_classes": 10, "input_size": (1, 16, 16), "mean": (0.3,), "std": (0.3,)}
    own = Classifier.of(Spare(), name="mine", **sized)
    short = {"student": "mine", "optimizer": "adamw", "ema": 0.5, "rounds": 0}
    config = distill_config(out=str(tmp_path / "run"), **short)
    left = iter([False] * 10 + [True])
    with pytest.raises(Stopped, match="of 12 of the student"):
        distill(config, own=Own(student=own), should_stop=lambda: next(left))
    distill(config, own=Own(student=own))
    trained, before = load_file(tmp_path / "run/student.safetensors"), own.module.state_dict()
    same = {name: torch.equal(trained[name], before[name]) for name in before}
    assert same == {name: name.startswith("spare") for name in before}


def test_a_student_of_which_nothing_that_learns_reaches_the_logits_is_refused(
    tmp_path: Path,
) -> None:
    sized = {"num_classes": 10, "input_size": (1, 16, 16), "mean": (0.3,), "std": (0.3,)}
    module = Spare()
    module.head.requires_grad_(False)
    own = Classifier.of(module, name="mine", **sized)
    with pytest.raises(
        ModelError, match=r"^own:mine: none of the parameters that learn reaches its"
    ):
        distill(distill_config(out=str(tmp_path / "run"), student="mine"), own=Own(student=own))
    assert not (tmp_path / "run").exists()


def test_the_data_are_part_of_the_run(tmp_path: Path) -> None:
    invert(invert_config(out=str(tmp_path / "images")))
    run_offline(tmp_path / "run", data=str(tmp_path / "images"))
    invert(invert_config(out=str(tmp_path / "images"), per_class=6))
    with pytest.raises(RunError, match="made with data_pixels_sha256"):
        run_offline(tmp_path / "run", data=str(tmp_path / "images"))


def test_the_labels_are_part_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they hold, and not by where they lie."""
    monkeypatch.chdir(tmp_path)
    invert(invert_config(out="made"))
    run_offline(Path("told"), data="made", store_labels=3)
    run_offline(Path("run"), data="made", labels="told")
    Path("told").rename("moved")
    run_offline(Path("run"), data="made", labels="moved")
    path = Path("moved/labels/steps-00000000.safetensors")
    tensors, told = states.read(path)
    states.write(path, {**tensors, "log_prob": tensors["log_prob"].flip(0)}, told)
    with pytest.raises(RunError, match=r"run was made with labels_sha256 .*choose another --out"):
        run_offline(Path("run"), data="made", labels="moved")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"labels of the teacher are missing: {path} is damaged"):
        run_offline(Path("run"), data="made", labels="moved")


def test_real_images_stay_real_inside_a_run_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    assert not run_offline(tmp_path / "run", data="sklearn:digits:train").data_free


def free(spec: Path | str, teacher: Classifier) -> bool:
    """Whether what learns from `spec` learns from nothing real."""
    config = merge(DistillConfig, {**PLAIN, "teacher": "t", "student": "s", "data": str(spec)})
    student = replace(teacher, card=replace(teacher.card, data_free=True))
    given = read_labelled(config.data, teacher)
    materials = Materials(networks=Networks(teacher), student=student, given=given)
    return materials.is_data_free(config)


def test_a_run_vouches_for_no_more_than_its_own_images(tmp_path: Path, digits: Classifier) -> None:
    """Not for what lies in its shards/, however that is called."""
    invert(invert_config(out=str(tmp_path / "made")))
    within = tmp_path / "made" / "shards"
    assert free(tmp_path / "made", digits)
    for name in ("real", "images", "shards"):
        for label in range(10):
            (within / name / str(label)).mkdir(parents=True)
            Image.new("L", (16, 16), 25 * label).save(within / name / str(label) / "x.png")
        assert not free(within / name, digits)
    (within / "tars").mkdir()
    images = torch.zeros((10, 1, 16, 16), dtype=torch.uint8)
    records = [{"key": str(k)} for k in range(10)]
    shards.write(within / "tars" / "x.tar", images, list(range(10)), records)
    assert not free(within / "tars", digits)
    assert not free(within / "tars" / "x.tar", digits)


def test_a_run_vouches_for_its_images_from_within(
    tmp_path: Path, digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is called like the folder in it."""
    invert(invert_config(out=str(tmp_path / "shards")))
    assert free(tmp_path / "shards", digits)
    monkeypatch.chdir(tmp_path / "shards" / "shards")
    assert free("*.tar", digits)
    assert free(".", digits)


def test_real_images_are_not_data_free(tmp_path: Path) -> None:
    result = run_offline(tmp_path / "run", data="sklearn:digits:train")
    assert not result.data_free
    assert not models.load(result.student).card.data_free


def test_images_that_competed_with_a_real_student_are_not_data_free(tmp_path: Path) -> None:
    rival = {"method": "adaptive", "student": "digits_resnet14"}
    invert(invert_config(out=str(tmp_path / "images"), **rival))
    assert not run_offline(tmp_path / "run", data=str(tmp_path / "images")).data_free
    run(tmp_path / "student", student="digits_resnet14", steps=1, warmup=0)
    assert not run_offline(tmp_path / "again", data=str(tmp_path / "student")).data_free


def test_a_rival_that_runs_at_one_size_only_leaves_one_stage() -> None:
    size = (3, 96, 96)
    teacher = models.load("cifar_resnet8", pretrained=False, input_size=size)
    rival = models.load("vit_tiny_patch16_224", pretrained=False, num_classes=10, input_size=size)
    config = merge(DistillConfig, {"teacher": "t", "student": "s"})
    assert settled(config, Networks(teacher)).stages == (2, 1)
    assert settled(config, Networks(teacher, rival=rival)).stages == (1,)


def test_an_imagenet_student_on_small_images_gets_advice(tmp_path: Path) -> None:
    events: list[Event] = []
    config = distill_config(out=str(tmp_path), student="resnet18", steps=3, warmup=0, rounds=0)
    distill(config, on_event=events.append)
    (hint,) = [event.text for event in events if isinstance(event, Hint)]
    assert "resnet18 is built for 224 px" in hint
    assert "cifar_resnet18 is made for it" in hint


def test_bad_input_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cifar_resnet9"):
        run(tmp_path / "run", student="cifar_resnet9")
    with pytest.raises(DataError):
        run(tmp_path / "run", eval_data=str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="alexnet does not run on 2 images of 1x16x16"):
        run(tmp_path / "run", student="alexnet")
    with pytest.raises(ConfigError, match="--noise-baseline: is measured on --eval-data"):
        run(tmp_path / "run", noise_baseline="on")
    with pytest.raises(ConfigError, match="--image-steps has no effect with --data"):
        run(tmp_path / "run", data="sklearn:digits:train")
    with pytest.raises(ConfigError, match="--warmup: 900 must be below --steps 800"):
        run(tmp_path / "run", warmup=900, steps="auto")
    assert not (tmp_path / "run").exists()
