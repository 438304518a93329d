"""`--budget-minutes`: what fits is worked out by hand, planned once and kept."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkd import preparation
from dreamkd.batch import Batch
from dreamkd.budget import Plan, largest_plan, planned
from dreamkd.config import DistillConfig, settle
from dreamkd.config.images import MOST_STEPS
from dreamkd.distillation import distill
from dreamkd.engine import Runtime, Work, worth_compiling
from dreamkd.errors import ConfigError, Stopped
from dreamkd.events import Event, Hint, OnEvent, Progress, ignore
from dreamkd.examples import Examples
from dreamkd.job import Job
from dreamkd.models import Classifier
from dreamkd.networks import Networks
from dreamkd.randomness import generator_for
from dreamkd.runfolder import open_run
from dreamkd.timing import Pace, left_out, measure_pace
from tests.conftest import distill_config
from tests.test_training import fresh

SIZE = (1, 16, 16)
PACE = Pace(first=2.0, batch=3.0, step=0.1)


def settled(**given: object) -> DistillConfig:
    return settle(distill_config(**given), input_size=SIZE)


@pytest.mark.parametrize(
    ("seconds", "rounds", "steps"),
    # 5 first batches of 2 leave 40; a round is a batch of 3 and 10 steps of 0.1.
    [(50.0, 10, 100), (49.9, 9, 129), (26.0, 4, 40)],
)
def test_as_many_whole_rounds_as_fit_and_the_rest_is_the_student_s(
    seconds: float, rounds: int, steps: int
) -> None:
    config = settled(first_batches=5, rounds=4, steps=40)
    assert largest_plan(config, PACE, seconds=seconds) == Plan(5, rounds, steps)


@pytest.mark.parametrize(
    ("seconds", "plan"),
    [
        # Up to the 4 rounds of the settings, 5/4 first batches of 2 a round; then no more than 5.
        (50.0, Plan(5, 10, 100)),
        (26.0, Plan(5, 4, 40)),
        # 4 of 2 and 3 rounds of 3 leave 3.5 for steps of 0.1, and 2 of 2 with a round 1.
        (20.5, Plan(4, 3, 35)),
        (8.5, Plan(2, 1, 15)),
    ],
)
def test_the_first_bank_of_a_shorter_plan_is_smaller(seconds: float, plan: Plan) -> None:
    config = settled(first_batches=5, rounds=4, steps=40)
    assert largest_plan(config, PACE, seconds=seconds, smaller=True) == plan


def test_a_short_plan_leaves_the_student_a_quarter_of_the_time() -> None:
    """A single round of 3 after 5 batches of 2, where 2.5 steps of 1 would be its share."""
    config, pace = settled(first_batches=5, rounds=64, steps=160), PACE._replace(step=1.0)
    assert largest_plan(config, pace, seconds=17.4) == Plan(5, 1, 4)


def test_however_dear_the_images_the_student_keeps_its_usual_share() -> None:
    """Of 400 rounds of 3 after 40 of 2, with 4,000 steps of 0.02: 1 in 17 seconds."""
    config, pace = settled(first_batches=40, rounds=400, steps=4000), PACE._replace(step=0.02)
    for seconds in (6.0, 30.0, 300.0):
        plan = largest_plan(config, pace, seconds=seconds, smaller=True)
        assert plan.steps * pace.step >= 0.99 * seconds / 17
        assert plan.first_batches * pace.first + plan.rounds * pace.batch > seconds / 2


def test_a_first_bank_that_was_given_is_kept() -> None:
    config = settled(first_batches=5, rounds=4, steps=40)
    for given, want in ((5, (5, 2)), ("auto", (4, 3))):
        wanted = distill_config(first_batches=given, rounds=4, steps=40)
        plan = planned(config, wanted, PACE, input_size=SIZE, seconds=20.5)
        assert (plan.first_batches, plan.rounds) == want


def test_rounds_end_where_they_are_no_longer_legal() -> None:
    config = settled(first_batches=5, rounds=4, steps=40)
    # 5 first batches of 2 and 3 rounds of 3 leave 31 for steps of 0.1.
    assert largest_plan(config, PACE, seconds=50.0, most=3) == Plan(5, 3, 310)
    assert largest_plan(config, PACE, seconds=1e9, most=3) == Plan(5, 3, MOST_STEPS)
    plan = planned(config, config, Pace(0.4, 0.4, 0.0066), input_size=SIZE, seconds=120_000)
    assert plan.rounds == 65_536


def test_offline_a_round_is_a_step() -> None:
    config = replace(settled(steps=40), recipe="offline")
    # 50 / 0.1
    assert largest_plan(config, PACE, seconds=50.0) == (0, 0, pytest.approx(500, abs=1))
    assert largest_plan(config, PACE, seconds=1e9) == (0, 0, MOST_STEPS)


def test_too_little_time_is_refused_with_what_it_takes() -> None:
    config = settled(first_batches=5, rounds=27, steps=243)
    with pytest.raises(ConfigError, match=r"a first round needs 0\.1 minutes more"):
        largest_plan(config, PACE, seconds=13.05)


def test_the_warm_up_follows_the_planned_steps_unless_it_is_given() -> None:
    given = distill_config(first_batches=5, rounds=4, steps=40, warmup="auto")
    for wanted, want in ((given, 5), (replace(given, warmup=2), 2)):
        config = settle(wanted, input_size=SIZE)
        plan = planned(config, wanted, PACE, input_size=SIZE, seconds=50.0)
        assert (plan.rounds, plan.steps, plan.warmup) == (10, 100, want)


def test_a_warm_up_is_judged_by_the_planned_steps(digits: Classifier) -> None:
    free = {"rounds": "auto", "steps": "auto", "first_batches": "auto"}
    given = distill_config(budget_minutes=60.0, warmup=9000, **free)
    config = preparation.settled(given, Networks(digits))
    assert int(config.steps) < 9000
    with pytest.raises(ConfigError, match="--warmup: 9000 must be below"):
        planned(config, given, PACE, input_size=SIZE, seconds=60.0)
    longer = planned(config, given, PACE, input_size=SIZE, seconds=36000.0)
    assert longer.warmup == 9000 < int(longer.steps)


@contextmanager
def opened(
    teacher: Classifier, config: DistillConfig, folder: Path, *, on_event: OnEvent = ignore
) -> Iterator[Job]:
    """A job with nothing done, whose batches are of twenty images."""
    config = replace(config, r_feature=1.0, refine_r_feature=1.0, image_chunk=20)
    with (
        open_run(folder / "run") as run,
        Job(
            name="student",
            run=run,
            config=config,
            runtime=Runtime.settle(config),
            teacher=teacher,
            student=fresh(),
            on_event=on_event,
            should_stop=lambda: False,
        ) as job,
    ):
        yield job


@pytest.mark.parametrize("recipe", ["adaptive", "generator"])
def test_what_is_timed_is_forgotten(digits: Classifier, recipe: str, tmp_path: Path) -> None:
    """The job then makes the batches and the student that it would have made at once."""
    config = replace(settled(recipe=recipe, image_steps=3, refine_steps=2), bn_momentum=0.5)
    examples = Examples(torch.arange(256).byte().repeat(20, 1).view(20, 1, 16, 16), torch.zeros(20))

    def work(job: Job) -> dict[str, torch.Tensor]:
        made = [
            job.synthesiser.batch(torch.arange(20) % 10, generator=generator_for(0, "batch", k))
            for k in range(2)
        ]
        job.training.advance(examples, until=3)
        tensors, facts = job.training.state()
        assert facts["step"] == 3
        return tensors | {f"batch {k}": batch.images for k, batch in enumerate(made)}

    with opened(digits, config, tmp_path) as job:
        want = work(job)
    with opened(digits, config, tmp_path) as job:
        pace = measure_pace(job)
        assert min(pace[:3]) > 0
        got = work(job)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.slow
def test_what_is_timed_is_not_compiled_again(
    digits: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is traced counts, whatever becomes of it: no code is generated here.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(settled(recipe="generator", image_steps=2, refine_steps=1), compile="on")
    torch._dynamo.reset()  # else graphs of another test may serve
    counters, heard = torch._dynamo.utils.counters, list[Event]()
    counters.clear()
    with opened(digits, config, tmp_path, on_event=heard.append) as job:
        measure_pace(job)
        compiled = counters["stats"]["unique_graphs"]
        job.resize(replace(config, rounds=2, steps=4, warmup=0))
        for compete in (False, True):
            job.synthesiser.batch(
                torch.arange(20) % 10, generator=generator_for(0, "batch"), compete=compete
            )
        blank = torch.zeros((20, 1, 16, 16), dtype=torch.uint8)
        job.training.advance(Examples(blank, torch.zeros(20)), until=4)
    assert counters["stats"]["unique_graphs"] == compiled >= 3  # images, with a rival, a student
    assert not [event for event in heard if isinstance(event, Hint)]


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"recipe": "generator", "image_steps": 5, "refine_steps": 20}, 25),
        ({"recipe": "generator", "image_steps": 2, "refine_steps": 3}, 5),
        ({"recipe": "adaptive", "image_steps": 30}, 30),
    ],
)
def test_steps_that_are_not_timed_take_as_long_as_those_like_them(
    digits: Classifier,
    given: dict[str, Any],
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that moves by a second with every step of a batch, and once at its end."""
    ticks = itertools.count()
    monkeypatch.setattr("dreamkd.timing._now", lambda _: float(next(ticks)))
    with opened(digits, settled(**given), tmp_path) as job:
        pace = measure_pace(job)
    assert (pace.first, pace.batch) == (steps + 1, steps + 1)


def test_steps_that_are_not_timed_take_as_long_as_those_of_their_resolution() -> None:
    """Twelve of 600 steps, eight at half the resolution of a second and four of four seconds."""
    config = settled(recipe="adaptive", image_steps=600, stages=(2, 1))
    marks = list(itertools.accumulate([0, 5, *[1] * 7, 9, *[4] * 3]))
    left = left_out(config, replace(config, image_steps=12), marks)
    assert left == 392 * 1 + 196 * 4


@pytest.mark.parametrize("competition", [0.0, 1.0])
def test_a_rival_is_timed_where_there_is_one(
    digits: Classifier, competition: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settled(recipe="adaptive", image_steps=2, competition=competition)
    timed: list[bool] = []
    with opened(digits, config, tmp_path) as job:
        batch = job.synthesiser.batch

        def watched(*args: Any, compete: bool, **rest: Any) -> Batch:
            timed.append(compete)
            return batch(*args, compete=compete, **rest)

        monkeypatch.setattr(job.synthesiser, "batch", watched)
        pace = measure_pace(job)
    assert any(timed) is (competition > 0)
    assert (pace.batch == pace.first) is (competition == 0)


def test_a_run_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few rounds on a machine of this pace, whatever the pace of the one that runs the test.
    pace = Pace(first=1.0, batch=10.0, step=0.1)
    monkeypatch.setattr("dreamkd.budget.measure_pace", lambda *_, **__: pace)
    config = distill_config(
        out=str(tmp_path / "run"),
        budget_minutes=1,
        rounds="auto",
        steps="auto",
        warmup="auto",
        first_batches=1,
        recipe="generator",
        eval_data="sklearn:digits",
    )
    notes: list[str] = []
    first = distill(config, on_event=lambda event: notes.append(str(event)))
    assert sum("to write" in note for note in notes) == 1  # of the plan, not of the default
    assert first.student_top1 is not None
    assert first.noise_top1 is None  # unasked, it would take time of its own
    resolved = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert resolved["requested"]["budget_minutes"] == 1
    assert resolved["config"]["noise_baseline"] == "off"  # also where its settings are given again
    # Of the recipe's 90 rounds and 9720 steps: fewer a round, and what fits of another.
    share = resolved["config"]["rounds"] / 90
    assert first.steps == resolved["config"]["steps"] >= int(9720 * share ** (5 / 3)) > 0
    manifest = (tmp_path / "run" / "manifest.jsonl").read_bytes()
    assert distill(config).steps == first.steps
    assert (tmp_path / "run" / "manifest.jsonl").read_bytes() == manifest


FREE = {"rounds": "auto", "steps": "auto", "warmup": "auto"}


def test_a_budget_that_is_over_before_the_work_is_timed_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    line = "--budget-minutes 0.0001: not enough to time the work, the student at step 1 of"
    with pytest.raises(ConfigError, match=line):
        distill(distill_config(out=str(tmp_path / "run"), budget_minutes=1e-4, **FREE))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("asked", "what"), [(1, "the student"), (50, "images that compete")])
def test_a_stop_while_the_work_is_timed_leaves_nothing_behind(
    tmp_path: Path, asked: int, what: str
) -> None:
    """Asked once at each step: 16 of the student, 12 of each image batch."""
    times, heard = itertools.count(1), list[Event]()
    config = distill_config(out=str(tmp_path / "run"), budget_minutes=60, image_steps=12, **FREE)
    with pytest.raises(Stopped, match="the work was being timed; the same command begins again"):
        distill(config, on_event=heard.append, should_stop=lambda: next(times) > asked)
    (*_, last) = [event for event in heard if isinstance(event, Progress)]
    assert last.phase == f"timing {what}"
    assert not (tmp_path / "run").exists()


def test_compiling_is_weighed_against_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four graphs of a network of 8 layers take a minute and a half, more than the time given."""
    decided: list[bool] = []

    def watched(calls: Any, work: Work, *, device: str) -> bool:
        decided.append(worth_compiling(calls, work, device=device))
        assert not worth_compiling(calls, work._replace(seconds=300), device=device)
        assert worth_compiling(calls, work._replace(seconds=900), device=device)
        return decided[-1]

    monkeypatch.setattr("dreamkd.preparation.worth_compiling", watched)
    given = {"budget_minutes": 1e-4, "compile": "auto", "recipe": "generator"}
    with pytest.raises(ConfigError, match="not enough to time the work"):
        distill(distill_config(out=str(tmp_path / "run"), **FREE, **given))
    assert decided == [False]


@pytest.mark.parametrize("name", ["rounds", "steps"])
def test_what_the_budget_decides_cannot_be_given_too(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} has no effect with --budget-minutes"):
        distill_config(**{**FREE, "budget_minutes": 5, name: 7})
