"""How fast a job's work is on this machine, timed on the job itself.

A few steps of each kind are done and forgotten; what they compiled stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from dreamkd import shards, timetable
from dreamkd.batch import Batch
from dreamkd.config import DistillConfig
from dreamkd.course import refining_steps, stages
from dreamkd.engine import Runtime
from dreamkd.examples import Examples
from dreamkd.files import part_of
from dreamkd.job import Job
from dreamkd.labels import label_range
from dreamkd.randomness import generator_for

#: Steps that are timed, of the student, of an image batch, and of pixels that are refined.
_STUDENT_STEPS, _IMAGE_STEPS, _REFINING_STEPS = 16, 12, 4

#: Batches that are timed of those that the student's statistics are taken of.
_BATCHES = 8

#: Told of what is timed, at which step of how many; may raise to end it.
OnTimed = Callable[[str, int, int], None]


class Pace(NamedTuple):
    """Seconds of each piece of work on this machine, once everything is compiled."""

    first: float  # an image batch of the first bank, with what is written after it
    batch: float  # an image batch that competes, with the same
    step: float  # a student step
    end: float = 0.0  # the statistics of the student that is kept


def measure_pace(job: Job, *, on_step: OnTimed = lambda *_: None) -> Pace:
    """Time the work of an open job; afterwards it is compiled, and as it was."""
    step, end = _student(job, on_step)
    first, batch = _images(job, on_step) if timetable.synthesises(job.config) else (0.0, 0.0)
    return Pace(first, batch, step, end)


def _student(job: Job, on_step: OnTimed) -> tuple[float, float]:
    """Seconds of a student step, and of the statistics in the end."""
    count, runtime = int(job.config.batch_size), job.runtime
    blank = torch.zeros((count, *job.teacher.card.input_size), dtype=torch.uint8)
    examples = Examples(blank, torch.zeros(count, dtype=torch.int64)).near(runtime.device)
    steps = runtime.first_steps + _STUDENT_STEPS

    def tell(step: int, _: object) -> None:
        on_step("the student", step, steps)

    with job.training.rehearsal():
        job.training.advance(examples, until=runtime.first_steps, on_step=tell)
        began = _now(runtime)
        job.training.advance(examples, until=steps, on_step=tell)
        trained = _now(runtime)
        few = min(job.config.bn_recalibration, _BATCHES)
        job.training.result(examples, batches=few)
        end = (_now(runtime) - trained) * job.config.bn_recalibration / max(1, few)
        return (trained - began) / _STUDENT_STEPS, end


def _images(job: Job, on_step: OnTimed) -> tuple[float, float]:
    """Seconds of a batch of the first bank, and of one that competes."""
    config, runtime = job.config, job.runtime
    short = replace(config, image_steps=min(int(config.image_steps), _IMAGE_STEPS))
    if refining_steps(config):
        short = replace(short, refine_steps=min(refining_steps(config), _REFINING_STEPS))
    classes, size = job.teacher.card.num_classes, int(config.image_batch_size)
    labels = label_range(range(classes), 0, size, seed=config.seed)

    def timed(*, compete: bool) -> float:
        """Seconds of a batch, as if the steps left out had taken as long as those like them."""
        marks = [_now(runtime)]
        what = "images that compete" if compete else "images"

        def mark(step: int, steps: int, _: object) -> None:
            marks.append(_now(runtime))
            on_step(what, step, steps)

        batch = job.synthesiser.batch(
            labels,
            generator=generator_for(config.seed, "budget"),
            compete=compete,
            on_step=mark,
        )
        _write(batch, job)
        return _now(runtime) - marks[0] + left_out(config, short, marks)

    with job.synthesiser.rehearsal(short):
        timed(compete=False)  # compiles
        first = timed(compete=False)
        if not timetable.any_competes(config):
            return first, first
        timed(compete=True)
        return first, timed(compete=True)


def left_out(config: DistillConfig, short: DistillConfig, marks: Sequence[float]) -> float:
    """Seconds of the steps that a batch of `short` leaves out of those of `config`.

    Args: marks: the time at the batch's beginning and after each of its steps.
    """
    seconds, done, taken = 0.0, 0, _phases(short)
    for factor, whole in _phases(config).items():
        steps = taken.get(factor, 0)
        # From the end of its first step, where there are more: that one also prepares.
        gap = _mean_gap(marks[done + min(1, steps // 2) : done + max(1, steps) + 1])
        seconds, done = seconds + (whole - steps) * gap, done + steps
    return seconds


def _phases(config: DistillConfig) -> dict[int, int]:
    """Steps of a batch by the factor of their resolution, and of refined pixels as of 0."""
    return dict(stages(config)) | {0: refining_steps(config)}


def _write(batch: Batch, job: Job) -> None:
    """Write the images of a round as it does, where it does, and remove them."""
    path = part_of(job.run.folder / "budget")  # of the names that the next run clears away
    records = batch.records(start=0, class_names=job.teacher.card.class_names)
    shards.write(path, batch.images, batch.labels.tolist(), records)
    path.unlink()


def _mean_gap(marks: Sequence[float]) -> float:
    """From one mark to the next; 0 where there is only one."""
    return (marks[-1] - marks[0]) / max(1, len(marks) - 1)


def _now(runtime: Runtime) -> float:
    if runtime.device != "cpu":
        torch.cuda.synchronize(runtime.device)  # host sync: what was asked for is done
    return time.perf_counter()
