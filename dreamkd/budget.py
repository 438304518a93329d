"""How much a student can learn in a given time: `--budget-minutes`, planned once and recorded.

The work is timed on the job that will do it, and forgotten: what was compiled stays. First bank,
rounds and student steps, and with them every schedule, follow, so that the run ends fully annealed.
The plan is part of the run's identity: a run that is continued elsewhere keeps it.
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from dreamkd import shards, timetable
from dreamkd.batch import Batch
from dreamkd.config import DistillConfig, settle
from dreamkd.config.images import MOST_IMAGES, MOST_STEPS
from dreamkd.course import refining_steps, stages
from dreamkd.engine import Runtime
from dreamkd.engine.available import free_memory
from dreamkd.errors import ConfigError, Stopped
from dreamkd.events import Note, Progress
from dreamkd.examples import Examples
from dreamkd.files import part_of
from dreamkd.job import Job
from dreamkd.labels import label_range
from dreamkd.randomness import generator_for

#: However short, a plan leaves the student so much of the time, or what it usually has if less.
_LEAST_SHARE = 1 / 4

#: Steps that are timed, of the student, of an image batch, and of pixels that are refined.
_STUDENT_STEPS, _IMAGE_STEPS, _REFINING_STEPS = 16, 12, 4

#: Batches that are timed of those that the student's statistics are taken of.
_BATCHES = 8


class Pace(NamedTuple):
    """Seconds of each piece of work on this machine, once everything is compiled."""

    first: float  # an image batch of the first bank, with what is written after it
    batch: float  # an image batch that competes, with the same
    step: float  # a student step
    end: float = 0.0  # the statistics of the student that is kept


class Plan(NamedTuple):
    """What fits into a time; without images of its own, a student has no rounds."""

    first_batches: int
    rounds: int
    steps: int


def fit(job: Job, *, given: DistillConfig, began: float) -> DistillConfig:
    """The job's settings, sized so that it ends `budget_minutes` after it began.

    Args:
        job: open, with nothing done.
        given: as the user gave it, with the budget.
        began: `time.perf_counter()` at the beginning.

    Raises:
        ConfigError: not even one round fits, or the time is over before this is known.
        Stopped: when asked.
    """
    minutes = float(given.budget_minutes or 0)
    job.on_event(Note(f"budget: {minutes:g} minutes; timing the work"))

    def on_step(what: str, step: int, steps: int) -> None:
        job.on_event(Progress(f"timing {what}", step, steps, "steps"))
        if job.workers.world_size == 1 and job.should_stop():
            raise Stopped("the work was being timed; the same command begins again")
        if time.perf_counter() - began > 60 * minutes:
            raise ConfigError(
                f"--budget-minutes {minutes:g}: not enough to time the work, {what} at step {step} "
                f"of {steps}; give it more"
            )

    pace = measure_pace(job, on_step=on_step)
    job.forecast.expect(batches=pace.batch, steps=pace.step)
    seconds = 60 * minutes - (time.perf_counter() - began) - pace.end
    size = job.teacher.card.input_size
    made = planned(
        job.config, given, pace, input_size=size, seconds=seconds, most=_most_rounds(job)
    )
    images = f"{made.first_batches} first batches of {pace.first:.3g} s, "
    images += f"{made.rounds} rounds of {pace.batch:.3g} s, "
    images = images if timetable.synthesises(made) else ""
    job.on_event(Note(f"budget: {images}{made.steps} student steps of {pace.step:.3g} s"))
    return made


def planned(
    config: DistillConfig,
    given: DistillConfig,
    pace: Pace,
    *,
    input_size: tuple[int, int, int],
    seconds: float,
    most: int = MOST_IMAGES,
) -> DistillConfig:
    """`config` (settled) for a run that ends after `seconds`: rounds, steps and their schedules.

    Args:
        given: as the user gave it, for what follows from rounds and steps.
        most: as of `largest_plan`.
    Raises: ConfigError: not even one round fits, or the warm-up that was given does not.
    """
    smaller = given.first_batches == "auto"
    plan = largest_plan(config, pace, seconds=seconds, most=most, smaller=smaller)

    def sized(one: DistillConfig) -> DistillConfig:
        one = replace(one, budget_minutes=None, steps=plan.steps)
        if not timetable.synthesises(config):
            return one
        return replace(one, first_batches=plan.first_batches, rounds=plan.rounds)

    made = replace(sized(config), warmup=settle(sized(given), input_size=input_size).warmup)
    made.check()  # a warm-up that was given may not fit
    return made


def largest_plan(
    config: DistillConfig,
    pace: Pace,
    *,
    seconds: float,
    most: int = MOST_IMAGES,
    smaller: bool = False,
) -> Plan:
    """The most rounds, each with its share of student steps, that end within `seconds`.

        first_batches first + rounds batch + steps step = seconds

    With a share of the usual rounds comes the same share of the usual steps, or as many as fill the
    student's least share of the time; what is left of another round is the student's too. No other
    division that was tried was better (docs/benchmarks.md, "A short budget on a slow CPU").

    Args:
        config: settled; its `rounds` and `steps` are the usual ones.
        most: rounds.
        smaller: whether the first bank shrinks with the rounds, where they are fewer than those of
            `config`; else it is that of `config`.
    Raises: ConfigError: not even one round fits.
    """
    if not timetable.synthesises(config):
        steps = int(seconds / pace.step)
        if steps < 1:
            raise _too_short("step", pace.step - seconds)
        return Plan(0, 0, min(steps, MOST_STEPS))
    whole, usual = int(config.first_batches), max(1, int(config.rounds))

    def bank(rounds: int) -> int:
        return min(whole, math.ceil(whole * rounds / usual)) if smaller else whole

    def images(rounds: int) -> float:
        """Seconds of synthesis."""
        return bank(rounds) * pace.first + rounds * pace.batch

    learning = int(config.steps) * pace.step  # usually
    least = min(_LEAST_SHARE / (1 - _LEAST_SHARE), learning / images(usual))

    def cost(rounds: int) -> float:
        making = images(rounds)
        return making + max(learning * rounds / usual, least * making)

    rounds = bisect.bisect_right(range(1, most + 1), seconds, key=cost)
    if rounds < 1:
        raise _too_short("round", cost(1) - seconds)
    return Plan(
        bank(rounds), rounds, min(round((seconds - images(rounds)) / pace.step), MOST_STEPS)
    )


def _too_short(unit: str, seconds: float) -> ConfigError:
    missing = math.ceil(seconds / 6) / 10
    return ConfigError(f"--budget-minutes: a first {unit} needs {missing} minutes more")


def _most_rounds(job: Job) -> int:
    """Rounds whose images half of the free memory holds, and no more than are legal."""
    if not timetable.synthesises(job.config):
        return MOST_IMAGES
    batch = int(job.config.image_batch_size) * math.prod(job.teacher.card.input_size)
    rounds = free_memory() // 2 // batch - int(job.config.first_batches)
    return max(1, min(rounds, MOST_IMAGES))


#: Told of what is timed, at which step of how many; may raise to end it.
OnTimed = Callable[[str, int, int], None]


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
