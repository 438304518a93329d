"""How a student is trained: on images that exist, or on images synthesised as it learns.

A recipe is a function of a job; each reads in execution order. Batch k and every training step are
functions of (settings, what came before), so that a killed run continues to the same student.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkd import timetable
from dreamkd.bank import Bank
from dreamkd.config import DistillConfig
from dreamkd.engine import LOOK, Runtime, enough_memory, to_uint8
from dreamkd.errors import DataError, Stopped
from dreamkd.events import Hint, Note, OnEvent, Progress
from dreamkd.examples import Examples
from dreamkd.images import Pixels
from dreamkd.labels import label_range
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.randomness import generator_for
from dreamkd.runs import Run
from dreamkd.sequence import carry, outstanding
from dreamkd.softlabels import Recorder, Stored
from dreamkd.synthesis import OnStep, Synthesiser
from dreamkd.training import Training

#: Seconds between two saved states.
_SAVE_EVERY = 20.0


@dataclass(kw_only=True)
class Job:
    """One student on its way, and the state by which it resumes."""

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
    measured: Examples | None = None  # what the student is measured on as it learns
    flush: Callable[[], None] = lambda: None  # makes durable what the student has learned from
    recorder: Recorder | None = None  # of the teacher's outputs
    stored: Stored | None = None  # the teacher's outputs, if it need not run

    def __post_init__(self) -> None:
        """Set up the student's training."""
        self.training = Training(
            self.student,
            self.teacher,
            self.config,
            runtime=self.runtime,
            record=self.recorder.add if self.recorder else None,
            stored=self.stored.at if self.stored else None,
            on_event=self.on_event,
        )
        self.seconds = 0.0  # of synthesis, over all processes
        self.curve: list[dict[str, float]] = []  # of the student as it learned
        self._looks = timetable.looks(self.config)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the saved state, if there is one."""
        saved = self.run.load_state(self.name, on_event=self.on_event)
        if saved is not None:
            self.training.restore(*saved)
            self.seconds = float(saved[1]["synthesis_seconds"])
            self.curve = saved[1]["curve"]

    def save(self) -> None:
        """Keep the state."""
        self.flush()
        tensors, facts = self.training.state()
        facts |= {"synthesis_seconds": self.seconds, "curve": self.curve}
        self.run.save_state(self.name, tensors, facts)
        self._saved_at = time.monotonic()

    def restart(self) -> None:
        """Back to the student's step 0."""
        self.training.restart()
        self.curve = []

    def look(self, examples: Examples) -> None:
        """Measure the student of this step, which learned from `examples`, if that is due.

        Raises: Stopped: when asked; the same command begins with this measurement.
        """
        step = self.training.step
        if self.measured is None or step not in self._looks:
            return
        if any(point["step"] == step for point in self.curve):
            return
        found = measure(
            self.training.result(examples), *self.measured, on_batch=self._stop_if_asked
        )
        self.training.student.module.train()
        self.curve.append(self.point(found.top1, images=len(examples.images)))
        self.on_event(Note(f"step {step}: {found.top1:.2f} % top-1"))

    def point(self, top1: float, *, images: int) -> dict[str, float]:
        """One point of the curve, at the student's step; seconds of synthesis and training."""
        seconds = self.seconds + self.training.seconds
        return {"step": self.training.step, "images": images, "top1": top1, "seconds": seconds}

    def train(self, examples: Examples, *, until: int) -> None:
        """Advance the student to step `until`, saving now and then and when asked to stop."""

        def on_step(step: int, terms: dict[str, float]) -> None:
            if step % LOOK == 0 or step == until:
                total = int(self.config.steps)
                self.on_event(Progress(self.name, step, total, "steps", terms))
            self._stop_if_asked()
            self.look(examples)
            if step == until or time.monotonic() - self._saved_at > _SAVE_EVERY:
                self.save()

        if self.training.step < until:
            self.run.begin()
        with enough_memory("--batch-size"):
            if self.training.step <= until:
                self.look(examples)  # the last run was stopped before or in it
            self.training.advance(examples, until=until, on_step=on_step)

    def _stop_if_asked(self) -> None:
        """Raises: Stopped: the state of this step is saved."""
        if self.should_stop():
            self.save()
            raise Stopped("the student's state is saved; the same command continues")


def offline(job: Job) -> Examples:
    """Train on images that exist, which are returned."""
    assert job.given is not None
    given = job.given.near(job.runtime.device)
    job.resume()
    if job.recorder is not None:
        job.flush = job.recorder.flush
        try:
            job.recorder.begin(job.training.step)
        except DataError as error:
            job.on_event(Hint(f"{error}: the student is trained again"))
            job.restart()
            job.recorder.begin(0)
    with job.training:
        job.train(given, until=int(job.config.steps))
    return given


def adaptive(job: Job) -> Examples:
    """Adaptive DeepInversion: a first bank, then fresh batches against the current student.

    The bank is replayed and never thrown away. Batch k is a function of the settings and of the
    student at step `begins(k)`; training between two batches is a function of (bank, step).

    Returns: the bank.
    """
    config, card = job.config, job.teacher.card
    size, count = int(config.image_batch_size), timetable.batches(config)
    bank = Bank(job.run, on_event=job.on_event)
    job.flush = bank.flush
    held = bank.held(range(count))
    job.resume()
    everything = Examples(
        torch.empty((count * size, *card.input_size), dtype=torch.uint8),
        label_range(range(card.num_classes), 0, count * size, seed=config.seed),
    ).near(job.runtime.device)
    everything.images.zero_()  # what memory it takes, it takes now and not after hours
    with ExitStack() as stack:
        stack.enter_context(bank)
        stack.enter_context(job.training)
        missing = set()
        if not all(held):
            job.run.begin()
            rival = job.student.copy()
            synthesiser = stack.enter_context(
                Synthesiser.of(
                    job.teacher,
                    config,
                    runtime=job.runtime,
                    prior=job.prior,
                    student=rival,
                    on_event=job.on_event,
                )
            )
            missing = {*outstanding(job.run, synthesiser, held, on_event=job.on_event)}
        if any(
            timetable.competes(k, config) and job.training.step > timetable.begins(k, config)
            for k in missing
        ):
            # The student has gone past a batch that needs the student of its time.
            job.on_event(Hint("a shard is missing or damaged: the student is trained again"))
            job.restart()
        for k in range(count):
            here = slice(k * size, (k + 1) * size)
            job.train(_first(everything, here.start), until=timetable.begins(k, config))
            if k in missing:
                rival.module.load_state_dict(job.training.student.module.state_dict())
                made = _make(k, everything.labels[here], job, synthesiser, bank)
            else:
                made, _ = bank.read(k)
            everything.images[here] = made
        bank.write_contact_sheet()
        job.train(everything, until=int(config.steps))
    return everything


def on_noise(job: Job, *, count: int) -> Examples:
    """Train the same student on `count` images of white noise, returned: the baseline."""
    card = job.teacher.card
    noise = Pixels(card.input_size, mean=card.mean, std=card.std, clip=True)
    noise.begin(count, generator_for(job.config.seed, "noise"))
    images = to_uint8(noise.inputs().detach().contiguous(), mean=card.mean, std=card.std)
    labels = label_range(range(card.num_classes), 0, count, seed=job.config.seed)
    examples = Examples(images, labels).near(job.runtime.device)
    job.resume()
    with job.training:
        job.train(examples, until=int(job.config.steps))
    return examples


def _make(k: int, labels: Tensor, job: Job, synthesiser: Synthesiser, bank: Bank) -> Tensor:
    """Synthesise batch `k`, an image per label, and keep it and what goes on to the next.

    Returns: the images, uint8 (B, C, H, W).
    Raises: Stopped: the batch is then made again.
    """
    began = time.perf_counter()
    config, card = job.config, job.teacher.card
    with enough_memory("--image-chunk"):
        batch = synthesiser.batch(
            labels,
            generator=generator_for(config.seed, "batch", k),
            compete=timetable.competes(k, config),
            name=f"batch {k}",
            on_step=_watcher(f"images {k + 1} of {timetable.batches(config)}", job),
        )
    facts = batch.facts(class_names=card.class_names, predictions={})
    line = batch.summary(predictions={})
    bank.add(k, batch.images, batch.labels, start=k * len(labels), facts=facts, line=line)
    carry(job.run, bank, synthesiser, following=k + 1)
    job.seconds += time.perf_counter() - began
    return batch.images


def _watcher(phase: str, job: Job) -> OnStep:
    """Reports progress and stops when asked: the batch is then made again.

    Raises (when called): Stopped.
    """

    def watch_step(step: int, steps: int, terms: dict[str, float]) -> None:
        if step % LOOK == 0 or step == steps:
            job.on_event(Progress(phase, step, steps, "steps", terms))
        if job.should_stop():
            raise Stopped("finished batches are kept; the same command continues")

    return watch_step


def _first(examples: Examples, count: int) -> Examples:
    return Examples(examples.images[:count], examples.labels[:count])


RECIPES: dict[str, Callable[[Job], Examples]] = {
    "offline": offline,
    "adaptive": adaptive,
    "generator": adaptive,  # the same loop; what differs is the images and the settings
}
