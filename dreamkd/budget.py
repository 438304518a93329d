"""How much a student can learn in a given time: `--budget-minutes`, planned once and recorded.

From the pace of the work first bank, rounds and student steps follow, and with them every schedule,
so that the run ends fully annealed. The plan is part of the run's identity: a run that is continued
elsewhere keeps it.
"""

from __future__ import annotations

import bisect
import math
import time
from dataclasses import replace
from typing import NamedTuple

from dreamkd import timetable
from dreamkd.config import DistillConfig, settle
from dreamkd.config.images import MOST_IMAGES, MOST_STEPS
from dreamkd.engine.available import free_memory
from dreamkd.errors import ConfigError, Stopped
from dreamkd.events import Note, Progress
from dreamkd.job import Job
from dreamkd.timing import Pace, measure_pace

#: However short, a plan leaves the student so much of the time, or what it usually has if less.
_LEAST_SHARE = 1 / 4


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
