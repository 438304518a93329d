"""One student on its way: its training, what makes its images, the state by which it resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from dreamkd import timetable
from dreamkd.clock import SaveClock
from dreamkd.config import DistillConfig
from dreamkd.distributed import ALONE, Workers
from dreamkd.engine import LOOK, Runtime, enough_memory
from dreamkd.errors import RunError, Stopped
from dreamkd.events import Note, OnEvent, Progress
from dreamkd.examples import Examples, Labelled
from dreamkd.files import read_json, write_atomically
from dreamkd.forecast import Forecast
from dreamkd.losses import SparseOutputs
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.networks import Networks
from dreamkd.runs import Run
from dreamkd.softlabels import Recorder, Stored
from dreamkd.synthesis import Synthesiser
from dreamkd.training import Training

#: Seconds between two saved states, at least.
_SAVE_EVERY = 20.0

#: Where the seconds of synthesis are kept between two states, since batches are kept at once.
_SECONDS = "seconds.json"


@dataclass(kw_only=True)
class Job:
    """What a recipe works with; compiled once, from `with` to its end.

    Where several workers share it, each holds one, and the leader's alone writes and measures.
    """

    name: str  # of the state file, and of the phase that is reported
    run: Run
    config: DistillConfig  # settled
    runtime: Runtime
    teacher: Classifier
    student: Classifier
    on_event: OnEvent
    should_stop: Callable[[], bool]
    prior: Classifier | None = None  # whose statistics are matched, if not the teacher's
    given: Examples | None = None  # what `offline` trains on
    measured: Labelled | None = None  # what the student is measured on as it learns
    recorder: Recorder | None = None  # of the teacher's outputs
    stored: Stored | None = None  # the teacher's outputs, if it need not run
    workers: Workers = ALONE

    def __post_init__(self) -> None:
        """Nothing on the networks is touched before `with`."""
        self.seconds = 0.0  # of synthesis, over all processes
        self.curve: list[dict[str, float]] = []  # of the student as it learned
        self.forecast = Forecast()  # of the job's batches and steps, the baseline's too
        self._stack = ExitStack()
        self._clock = SaveClock(least=_SAVE_EVERY)
        self._flush: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        self.training = self._stack.enter_context(
            Training(
                self.student,
                self.teacher,
                self.config,
                runtime=self.runtime,
                record=self._record if self.recorder else None,
                stored=self.stored.at if self.stored else None,
                workers=self.workers,
                on_event=self.on_event,
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def rival(self) -> Classifier | None:
        """The student as images see it: each batch that competes takes over its weights."""
        return self.student.copy() if timetable.any_competes(self.config) else None

    @cached_property
    def synthesiser(self) -> Synthesiser:
        """What makes the images, set up when they are first needed."""
        return self._stack.enter_context(
            Synthesiser.of(
                Networks(self.teacher, prior=self.prior, rival=self.rival),
                self.config,
                runtime=self.runtime,
                on_event=self.on_event,
            )
        )

    def _record(self, step: int, outputs: SparseOutputs) -> None:
        if self.recorder is not None and self.workers.leads:
            self.recorder.add(step, outputs)

    @cached_property
    def _measured_on(self) -> str | None:
        """What it is measured on, by content: points of other images are of another curve."""
        return self.measured and self.measured.examples.sha256()

    def resize(self, config: DistillConfig) -> None:
        """Take another size before the first step; nothing but batches and steps may differ."""
        self.config = self.training.config = config

    def resume(self, *, flush: Callable[[], None] = lambda: None) -> None:
        """Continue from the saved state, if there is one.

        Args: flush: makes durable what the student learns from; called before each save.

        Raises: RunError: the leader's is another, since the workers see different folders.
        """
        self._flush = flush
        saved = self.run.load_state(self.name, on_event=self.on_event)
        if saved is not None:
            self.training.restore(*saved)
            self.seconds = float(saved[1]["synthesis_seconds"])
            if self._measured_on is None:  # nor does this process measure; the next one may
                self._measured_on = saved[1]["measured_on"]
            if saved[1]["measured_on"] == self._measured_on:
                self.curve = saved[1]["curve"]
        if self.workers.world_size > 1:
            mine = self.training.step, self.student.sha256()
            if self.workers.broadcast(mine) != mine:
                raise RunError(
                    f"{self.run.folder} holds another state here than where the leader is; all "
                    "workers need the same folder"
                )

    def recall_seconds(self) -> None:
        """Count what batches took after the state was saved; a damaged file is as good as none."""
        with suppress(RunError, TypeError, ValueError):
            kept = read_json(self.run.folder / _SECONDS) or {}
            self.seconds = max(self.seconds, float(kept.get("synthesis_seconds", 0)))

    def spend(self, seconds: float, *, durably: bool = False) -> None:
        """Count what a batch took.

        Args: durably: write it down at once, and not with the next state.
        Raises: RunError: there is no room.
        """
        self.seconds += seconds
        if durably:
            text = json.dumps({"synthesis_seconds": self.seconds})
            write_atomically(self.run.folder / _SECONDS, text.encode())

    def foresee(self, *, batches: float) -> None:
        """So many batches are ahead, and the rest of the steps."""
        self.forecast.ahead["batches"] = batches
        self.forecast.reached("batches", timetable.batches(self.config) - batches, self.seconds)
        self._foresee_steps()

    def _foresee_steps(self) -> None:
        # After it another one learns, for as many steps, if there is to be a baseline.
        step, students = self.training.step, 2 if self.config.noise_baseline == "on" else 1
        self.forecast.ahead["steps"] = students * int(self.config.steps) - step
        self.forecast.reached("steps", step, self.training.seconds)

    def save(self) -> None:
        """Keep the state."""
        if not self.workers.leads:
            return  # its state is the leader's
        began = time.perf_counter()
        if self.recorder is not None:
            self.recorder.flush()
        self._flush()
        tensors, facts = self.training.state()
        facts |= {"synthesis_seconds": self.seconds}
        facts |= {"curve": self.curve, "measured_on": self._measured_on}
        self.run.save_state(self.name, tensors, facts)
        self._clock.saved(began)

    def save_if_due(self) -> None:
        """Keep the state now and then."""
        if self._clock.due():
            self.save()

    def restart(self) -> None:
        """Back to the student's step 0."""
        self.training.restart()
        self.curve = []

    def look(self, examples: Examples) -> None:
        """Measure the student of this step, which learned from `examples`, if that is due.

        Raises: Stopped: when asked; the same command begins with this measurement.
        """
        step = self.training.step
        if self.measured is None or step not in self._looks or not self.workers.leads:
            return
        if any(point["step"] == step for point in self.curve):
            return
        # Others wait for the next step, and stop with the leader there.
        alone = self.workers.world_size == 1
        stop: Callable[[], None] = self.stop_if_asked if alone else lambda: None
        student = self.training.result(examples, on_batch=lambda _: stop())
        found = measure(student, *self.measured.examples, on_batch=stop)
        self.curve.append(self.point(found.top1, images=len(examples.images)))
        self.on_event(Note(f"step {step}: {found.top1:.2f} % top-1"))

    @cached_property
    def _looks(self) -> set[int]:
        return timetable.looks(self.config)

    def point(self, top1: float, *, images: int) -> dict[str, float]:
        """One point of the curve, at the student's step; seconds of synthesis and training."""
        seconds = self.seconds + self.training.seconds
        return {"step": self.training.step, "images": images, "top1": top1, "seconds": seconds}

    def train(self, examples: Examples, *, until: int) -> None:
        """Advance the student to step `until`, saving now and then and when asked to stop.

        Raises:
            Stopped: when asked; the state of the last step is saved.
            DivergedError: the loss or a weight became NaN or infinite.
        """

        def on_step(step: int, terms: dict[str, float]) -> None:
            self.run.advanced = True  # a stop saves it
            pause = step % LOOK == 0 or step == until
            if pause:
                self._foresee_steps()
                total, left = int(self.config.steps), self.forecast.left()
                self.on_event(Progress(self.name, step, total, "steps", terms, left))
            if pause or self.runtime.device == "cpu" or self.workers.world_size == 1:
                self.stop_if_asked()  # several GPUs do not wait for each other at every step
            self.look(examples)
            if step == int(self.config.steps):
                self.save()
            self.save_if_due()

        if self.training.step < until and self.workers.leads:
            self.run.begin()
        with enough_memory("lower --batch-size, in another --out"):
            if self.training.step <= until:
                self.look(examples)  # the last run was stopped before or in it
            self.training.advance(examples, until=until, on_step=on_step)

    def result(self, examples: Examples) -> Classifier:
        """The student to keep, which learned from `examples`; what it takes is work of the student.

        Raises: Stopped: when asked; the same command takes the statistics anew.
        """

        def on_batch(k: int) -> None:
            self.on_event(Progress("recalibration", k, self.config.bn_recalibration, "batches"))
            self.stop_if_asked()

        began = time.perf_counter()
        student = self.training.result(examples, on_batch=on_batch)
        if self.config.bn_recalibration:
            ended = self.run.result  # before: then it was counted
            spent = self.training.seconds + time.perf_counter() - began
            self.training.seconds = ended["student_seconds"] if ended else spent
        return student

    def stop_if_asked(self, said: str = "") -> None:
        """Raises: Stopped: the state of this step is saved; it says how far it is, and `said`."""
        if self.workers.any(self.should_stop()):
            self.save()
            reached = f"step {self.training.step} of {self.config.steps} of the {self.name}"
            raise Stopped(f"{reached} is saved; {said}the same command continues")
