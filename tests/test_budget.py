"""`--budget-minutes`: what fits is worked out by hand, planned once and kept."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkd.budget import Pace, measure_pace, planned, rounds_and_steps
from dreamkd.config import DistillConfig, settle
from dreamkd.distillation import distill
from dreamkd.engine import Runtime
from dreamkd.errors import ConfigError
from dreamkd.models import Classifier
from tests.conftest import distill_config
from tests.test_training import fresh

SIZE = (1, 16, 16)
PACE = Pace(start=10.0, first=2.0, batch=3.0, step=0.1)


def settled(**given: object) -> DistillConfig:
    return settle(distill_config(**given), input_size=SIZE)


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    # 10 to start and 5 first batches of 2 leave 40; a round is a batch of 3 and 10 steps of 0.1.
    [(60.0, 10), (59.9, 9), (24.0, 1)],
)
def test_as_many_whole_rounds_as_fit(seconds: float, rounds: int) -> None:
    config = settled(first_batches=5, rounds=4, steps=40)
    assert rounds_and_steps(config, PACE, seconds=seconds) == (rounds, 10 * rounds)


def test_offline_a_round_is_a_step() -> None:
    config = replace(settled(steps=40), recipe="offline")
    # (60 - 10) / 0.1
    assert rounds_and_steps(config, PACE, seconds=60.0)[1] == pytest.approx(500, abs=1)


def test_too_little_time_is_refused_with_what_it_takes() -> None:
    config = settled(first_batches=5, rounds=4, steps=40)
    with pytest.raises(ConfigError, match=r"--budget-minutes: a first round would end after 0\.4"):
        rounds_and_steps(config, PACE, seconds=23.9)


def test_the_warm_up_follows_the_planned_steps_unless_it_is_given() -> None:
    given = distill_config(first_batches=5, rounds=4, steps=40, warmup="auto")
    for wanted, want in ((given, 5), (replace(given, warmup=2), 2)):
        config = settle(wanted, input_size=SIZE)
        plan = planned(config, wanted, PACE, input_size=SIZE, seconds=60.0)
        assert (plan.rounds, plan.steps, plan.warmup) == (10, 100, want)


def test_timing_leaves_the_networks_as_they_are(digits: Classifier) -> None:
    student = fresh()
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    config = replace(settled(), r_feature=1.0, image_chunk=20)
    pace = measure_pace(
        config, teacher=digits, student=student, prior=None, runtime=Runtime.settle(config)
    )
    assert pace.start >= 0
    assert min(pace.first, pace.batch, pace.step) > 0
    after = student.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"recipe": "generator", "image_steps": 5, "refine_steps": 20}, 25),
        ({"recipe": "generator", "image_steps": 2, "refine_steps": 3}, 5),
        ({"recipe": "adaptive", "image_steps": 30}, 30),
    ],
)
def test_steps_that_are_not_timed_take_as_long_as_those_like_them(
    digits: Classifier, given: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves by a second with every step of a batch, and once at its end."""
    config = replace(settled(**given), refine_r_feature=1.0, r_feature=1.0, image_chunk=20)
    ticks = itertools.count()
    monkeypatch.setattr("dreamkd.budget._now", lambda _: float(next(ticks)))
    pace = measure_pace(
        config, teacher=digits, student=fresh(), prior=None, runtime=Runtime.settle(config)
    )
    assert (pace.first, pace.batch) == (steps + 1, steps + 1)


def test_a_run_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two rounds on a machine of this pace, whatever the pace of the one that runs the test.
    pace = Pace(start=0.0, first=1.0, batch=10.0, step=0.1)
    monkeypatch.setattr("dreamkd.budget.measure_pace", lambda *_, **__: pace)
    config = distill_config(
        out=str(tmp_path / "run"),
        budget_minutes=1,
        rounds="auto",
        steps="auto",
        warmup="auto",
        first_batches=1,
        recipe="generator",
    )
    notes: list[str] = []
    first = distill(config, on_event=lambda event: notes.append(str(event)))
    assert sum("to write" in note for note in notes) == 1  # of the plan, not of the default
    resolved = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert resolved["requested"]["budget_minutes"] == 1
    assert resolved["config"]["steps"] == first.steps > 0
    # 108 student steps a round, as the recipe has them: 9720 / 90.
    assert resolved["config"]["steps"] == 108 * resolved["config"]["rounds"]
    manifest = (tmp_path / "run" / "manifest.jsonl").read_bytes()
    assert distill(config).steps == first.steps
    assert (tmp_path / "run" / "manifest.jsonl").read_bytes() == manifest


def test_a_budget_that_is_too_small_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--budget-minutes"):
        distill(
            distill_config(
                out=str(tmp_path / "run"),
                budget_minutes=1e-4,
                rounds="auto",
                steps="auto",
                warmup="auto",
            )
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["rounds", "steps"])
def test_what_the_budget_decides_cannot_be_given_too(name: str) -> None:
    free = {"rounds": "auto", "steps": "auto", "warmup": "auto"}
    with pytest.raises(ConfigError, match=f"--{name} has no effect with --budget-minutes"):
        distill_config(**{**free, "budget_minutes": 5, name: 7})
