"""How a student is trained: on images that exist, or on images synthesised as it learns.

A recipe is a function of an open job; each reads in execution order. Batch k and every training
step are functions of (settings, what came before), so that a killed run continues to the same
student.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from dreamkd import timetable
from dreamkd.bank import Bank
from dreamkd.batch import OnStep
from dreamkd.engine import LOOK, enough_memory, to_uint8
from dreamkd.errors import DataError
from dreamkd.events import Hint, Progress
from dreamkd.examples import Examples
from dreamkd.images import Pixels
from dreamkd.job import Job
from dreamkd.labels import label_range
from dreamkd.randomness import generator_for
from dreamkd.sequence import SMALLER, UNFINISHED, Chain

#: Images of noise drawn at once: as floats they take four times the memory of what is kept.
_NOISE = 256


def offline(job: Job) -> Examples:
    """Train on images that exist, which are returned."""
    assert job.given is not None
    given = job.given.near(job.runtime.device)
    job.resume()
    if job.recorder is not None:
        try:
            job.recorder.begin(job.training.step)
        except DataError as error:
            job.on_event(Hint(f"{error}: the student is trained again"))
            job.restart()
            job.recorder.begin(0)
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
    chain = Chain(job.run, bank, seed=config.seed, on_event=job.on_event)
    held = bank.held(range(count))
    job.resume(flush=chain.save)
    job.recall_seconds()
    everything = Examples(
        torch.empty((count * size, *card.input_size), dtype=torch.uint8),
        label_range(range(card.num_classes), 0, count * size, seed=config.seed),
    ).near(job.runtime.device)
    everything.images.zero_()  # what memory it takes, it takes now and not after hours
    with bank, chain, ExitStack() as stack:
        missing = set()
        if not all(held):
            job.run.begin()
            bank.tidy()
            missing = {*chain.begin(job.synthesiser, held)}
        if any(
            timetable.competes(k, config) and job.training.step > timetable.begins(k, config)
            for k in missing
        ):
            # The student has gone past a batch that needs the student of its time.
            job.on_event(Hint("a shard is missing or damaged: the student is trained again"))
            job.restart()
        job.foresee(batches=len(missing))
        kept = stack.enter_context(closing(bank.read(k for k in range(count) if k not in missing)))
        for k in range(count):
            here = slice(k * size, (k + 1) * size)
            job.train(_first(everything, here.start), until=timetable.begins(k, config))
            if k in missing:
                if job.rival is not None:
                    job.rival.module.load_state_dict(job.student.module.state_dict())
                made = _make(k, everything.labels[here], job, chain)
            else:
                made, _ = next(kept)
                job.on_event(Progress("images read", k + 1, count, "batches"))
                job.stop_if_asked()
            everything.images[here] = made
        bank.complete(count)
        chain.end()
        job.train(everything, until=int(config.steps))
    return everything


def on_noise(job: Job, before: Examples) -> Examples:
    """Train the same student on as many images of white noise, returned: the baseline.

    Args: before: images that are needed no more, in whose memory the noise is drawn.
    """
    card, generator = job.teacher.card, generator_for(job.config.seed, "noise")
    images = before.images
    job.resume()
    for part in torch.split(images, _NOISE):
        job.stop_if_asked()
        noise = Pixels(card.input_size, mean=card.mean, std=card.std, clip=True)
        noise.begin(len(part), generator)
        part.copy_(to_uint8(noise.inputs().detach().contiguous(), mean=card.mean, std=card.std))
    labels = label_range(range(card.num_classes), 0, len(images), seed=job.config.seed)
    examples = Examples(images, labels)
    job.train(examples, until=int(job.config.steps))
    return examples


def _make(k: int, labels: Tensor, job: Job, chain: Chain) -> Tensor:
    """Synthesise batch `k`, an image per label, and keep it.

    Returns: the images, uint8 (B, C, H, W).
    Raises: Stopped: the batch is then made again.
    """
    began = time.perf_counter()
    compete = timetable.competes(k, job.config)
    watcher = _watcher(f"images {k + 1} of {timetable.batches(job.config)}", job)
    with enough_memory(SMALLER):
        batch = chain.make(k, labels, compete=compete, on_step=watcher)
    made = time.perf_counter()
    job.spend(made - began, durably=True)  # before it is kept: a kill then loses none of it
    chain.keep(k, batch, start=k * len(labels))
    job.spend(time.perf_counter() - made)
    job.foresee(batches=job.forecast.ahead["batches"] - 1)
    job.save_if_due()
    return batch.images


def _watcher(phase: str, job: Job) -> OnStep:
    """Reports progress and stops when asked: the batch is then made again.

    Raises (when called): Stopped.
    """

    def watch_step(step: int, steps: int, terms: dict[str, float]) -> None:
        if step % LOOK == 0 or step == steps:
            job.forecast.within("batches", step / steps)
            job.on_event(Progress(phase, step, steps, "steps", terms, job.forecast.left()))
        job.stop_if_asked(UNFINISHED)

    return watch_step


def _first(examples: Examples, count: int) -> Examples:
    return Examples(examples.images[:count], examples.labels[:count])


RECIPES: dict[str, Callable[[Job], Examples]] = {
    "offline": offline,
    "adaptive": adaptive,
    "generator": adaptive,  # the same loop; what differs is the images and the settings
}
