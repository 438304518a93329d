"""`--bn-recalibration`: work of the student, that is planned, counted, shown, and stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkd.distillation import distill
from dreamkd.errors import ConfigError, Stopped
from dreamkd.events import Event, Progress
from dreamkd.examples import Examples
from dreamkd.models import Classifier
from dreamkd.networks import Own
from dreamkd.timing import measure_pace
from tests.conftest import distill_config
from tests.test_budget import opened, settled

SHORT = {"rounds": 0, "first_batches": 1, "steps": 3, "warmup": 0}


def test_it_is_shown_and_stopped_and_the_student_is_not_trained_again(tmp_path: Path) -> None:
    config = distill_config(out=str(tmp_path / "run"), bn_recalibration=40, **SHORT)
    told: list[Event] = []

    def shown() -> list[float]:
        return [e.done for e in told if isinstance(e, Progress) and e.phase == "recalibration"]

    with pytest.raises(Stopped, match="step 3 of 3 of the student is saved"):
        distill(config, on_event=told.append, should_stop=lambda: len(shown()) > 5)
    assert shown() == [0, 1, 2, 3, 4, 5]
    told.clear()
    found = distill(config, on_event=told.append)
    assert shown() == [*range(40)]
    assert not any(isinstance(e, Progress) and e.phase == "student" for e in told)
    assert found.steps == 3
    assert distill(config).student_seconds == found.student_seconds  # finished: counted once


def test_what_it_takes_is_counted_with_the_student(digits: Classifier, tmp_path: Path) -> None:
    images = torch.zeros((20, 1, 16, 16), dtype=torch.uint8)
    examples = Examples(images, torch.zeros(20, dtype=torch.int64))
    with opened(digits, replace(settled(**SHORT), bn_recalibration=10), tmp_path) as job:
        job.result(examples)
        assert job.training.seconds > 0
        once = job.training.seconds
        job.training.result(examples)  # as for a measurement in between
        assert job.training.seconds == once


def test_a_plan_leaves_time_for_it(digits: Classifier, tmp_path: Path) -> None:
    ends = []
    for count in (0, 10, 1000):
        config = replace(settled(**SHORT), bn_recalibration=count)
        with opened(digits, config, tmp_path / str(count)) as job:
            ends.append(measure_pace(job).end)
    assert ends[0] == 0
    assert 0 < ends[1] < ends[2]


def test_of_a_student_without_batch_norm_it_is_refused(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))
    card = {"input_size": (1, 16, 16), "num_classes": 10, "mean": (0.5,), "std": (0.25,)}
    config = distill_config(out=str(tmp_path / "run"), bn_recalibration=2, **SHORT)
    with pytest.raises(ConfigError, match="--bn-recalibration has no effect with --student"):
        distill(config, own=Own(student=Classifier.of(module, name="plain", **card)))
    assert not (tmp_path / "run").exists()
