"""`dreamkd invert`: a trained classifier turned into shards of images.

Batch k is a pure function of (settings, teacher, k) and shard k holds it, so that resuming is
making the batches that are missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from dreamkd import models, samples
from dreamkd.bank import Bank
from dreamkd.batch import Batch
from dreamkd.config import InvertConfig
from dreamkd.course import steps_per_batch
from dreamkd.engine import LOOK, Runtime, enough_memory, time_limit
from dreamkd.errors import ConfigError, Stopped
from dreamkd.events import Finished, Note, OnEvent, Progress, ignore
from dreamkd.files import require_room
from dreamkd.formats import FORMATS
from dreamkd.images import IMAGES
from dreamkd.labels import count_images, label_range, parse_classes, parse_weights, plan_batches
from dreamkd.models import Card
from dreamkd.partners import Partners
from dreamkd.preparation import coarsest, keep, prepare, settled, try_out
from dreamkd.randomness import generator_for
from dreamkd.runs import default_folder, open_run, requested_settings
from dreamkd.sequence import carry, outstanding


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """What `invert` made."""

    out: str
    images: int
    shards: int
    r_feature: float  # mean over batches, of the kept images; 0 without batch norm
    r_feature_chance: float  # mean over batches of what such images show by chance
    teacher_top1: float  # percent of images that the teacher classifies as asked
    verifiers: dict[str, float]  # percent, by verifier
    seconds: float  # of work by this process

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def invert(
    config: InvertConfig,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inversion:
    """Synthesise `per_class` images of every class into a run folder; resume it if it is there.

    Raises:
        ConfigError: an option does not fit the model.
        ModelError: a model cannot be loaded.
        NoBatchNormError: the method needs statistics that the model does not hold.
        RunError: the folder holds a different run, is locked or cannot be written.
        DivergedError: a term became NaN or infinite.
        Stopped: `should_stop` said so; the same call goes on.
    """
    should_stop = time_limit(should_stop, minutes=config.max_minutes)
    began = time.perf_counter()
    teacher = models.load(config.model, **config.load_arguments())
    on_event(Note(f"teacher: {teacher.card.source}"))
    partners = Partners.load(config, teacher, on_event=on_event)
    layout = _Layout.of(config, teacher.card)
    # Whatever can be refused is refused before anything is created.
    Runtime.settle(config)
    decided = settled(config, teacher)
    _deal(layout.count, decided)
    try_out(teacher, factor=coarsest(decided))
    requested = requested_settings(config)
    folder = Path(config.out or default_folder("invert", config.model, requested))
    with open_run(folder) as run, ExitStack() as stack:
        on_event = run.listener(on_event)

        def check(config: InvertConfig) -> None:
            needed = _room(config, teacher.card, wanted=layout.count - run.images)
            on_event(Note(f"run: {folder}; {require_room(folder, needed)}"))

        given, inputs = config, partners.sha256()
        config, runtime = prepare(
            run,
            given,
            teacher=teacher,
            prior=partners.prior,
            image_steps=lambda c: layout.count * steps_per_batch(c),
            inputs=inputs,
            check=check,
        )
        keep(run, given, config, teacher=teacher, inputs=inputs)
        on_event(Note(f"{runtime.describe()}; compile {config.compile}"))
        names = teacher.card.class_names or list(map(str, range(teacher.card.num_classes)))
        files = FORMATS[config.format](folder, names)
        bank = stack.enter_context(Bank(run, files=files, on_event=on_event))
        plan = _deal(layout.count, config, made=bank.lines)
        held = bank.held(range(len(plan)))
        # What a sequential run carries past its last batch is part of its end too.
        if run.result is None or not all(held):
            run.begin()
            stack.enter_context(partners.verifiers.on(runtime.device))
            synthesiser = stack.enter_context(
                partners.synthesiser(teacher, config, runtime=runtime, on_event=on_event)
            )
            missing = outstanding(run, synthesiser, held, on_event=on_event)
            pace = _Pace(on_event, should_stop, batches=len(missing))
            for k in missing:
                start, stop = plan[k]
                with enough_memory("--image-chunk"):
                    batch = synthesiser.batch(
                        layout.labels(start, stop),
                        generator=generator_for(config.seed, "batch", k),
                        name=f"batch {k}",
                        on_step=pace.on_step,
                    )
                predictions = partners.verifiers.predictions(batch.images)
                bank.add(
                    k,
                    batch.images,
                    batch.labels,
                    start=start,
                    facts=batch.facts(
                        class_names=teacher.card.class_names, predictions=predictions
                    ),
                    line=batch.summary(predictions=predictions),
                )
                carry(run, bank, synthesiser, following=k + 1)
                pace.on_batch(batch, predictions)
        bank.write_contact_sheet()
        result = _result(bank, folder, time.perf_counter() - began)
        run.finish({k: v for k, v in result.to_json().items() if k not in ("out", "seconds")})
        on_event(Finished("invert", result.seconds))
    return result


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which class each image shows."""

    classes: list[int]
    weights: list[float]
    count: int  # images in all
    seed: int

    @classmethod
    def of(cls, config: InvertConfig, card: Card) -> Self:
        """Raises: ConfigError: no such class, or no image at all."""
        names: dict[str, Any] = {
            "num_classes": card.num_classes,
            "class_names": card.class_names,
        }
        classes = parse_classes(config.classes, **names)
        weights = parse_weights(config.class_weights, classes, **names)
        count = count_images(weights, config.per_class)
        if count == 0:
            raise ConfigError("--class-weights and --per-class leave no image to make")
        return cls(classes=classes, weights=weights, count=count, seed=config.seed)

    def labels(self, start: int, stop: int) -> Tensor:
        """Labels of images start..stop-1, int64."""
        return label_range(self.classes, start, stop, seed=self.seed, weights=self.weights)


def _room(config: InvertConfig, card: Card, *, wanted: int) -> int:
    """Bytes that the run still writes, at most: images, and twice what a generator carries."""
    carried = IMAGES[config.images].carried(card.input_size)
    return samples.room(max(0, wanted), card.input_size) + 2 * carried


class _Pace:
    """Progress over all batches: steps, images, images per second, each term, the verifiers."""

    def __init__(self, on_event: OnEvent, should_stop: Callable[[], bool], *, batches: int) -> None:
        self._on_event = on_event
        self._should_stop = should_stop
        self._batches = batches
        self._done = self._images = 0
        self._began = time.perf_counter()
        self._hits: dict[str, int] = {}

    def on_step(self, step: int, steps: int, terms: dict[str, float]) -> None:
        """Report now and then; stop when asked: the batch is then made again.

        Raises: Stopped.
        """
        if step % LOOK == 0 or step == steps:
            shown = {"images": float(self._images)}
            if self._images:
                shown["images/s"] = self._images / (time.perf_counter() - self._began)
            shown |= terms | {name: 100 * n / self._images for name, n in self._hits.items()}
            done, total = self._done * steps + step, self._batches * steps
            self._on_event(Progress("invert", done, total, "steps", shown))
        if self._should_stop():
            raise Stopped("finished batches are kept; the same command continues")

    def on_batch(self, batch: Batch, predictions: Mapping[str, Tensor]) -> None:
        """A batch is complete."""
        self._done += 1
        self._images += len(batch.labels)
        for name, top1 in {"teacher": batch.predictions, **predictions}.items():
            hits = int((top1 == batch.labels).sum())
            key = f"{name} %"
            self._hits[key] = self._hits.get(key, 0) + hits


def _deal(
    count: int, config: InvertConfig, *, made: Sequence[Mapping[str, Any]] = ()
) -> list[tuple[int, int]]:
    """Batches [start, stop) of images 0..count-1; those already made stay as they are.

    Raises: ConfigError: a batch would hold a single image.
    """
    ranges = [(line["start"], line["start"] + line["count"]) for line in made]
    plan = plan_batches(count, int(config.image_batch_size), made=ranges)
    if any(stop - start < 2 for start, stop in plan):
        raise ConfigError(
            "a batch of a single image has no statistics: choose another --per-class or "
            "--image-batch-size"
        )
    return plan


def _result(bank: Bank, folder: Path, seconds: float) -> Inversion:
    lines = bank.lines
    images: int = sum(line["count"] for line in lines)

    def mean(values: Sequence[float]) -> float:
        """Over images: every batch counts by its size."""
        weighed = [v * line["count"] for v, line in zip(values, lines, strict=True)]
        return math.fsum(weighed) / images

    return Inversion(
        out=str(folder),
        images=images,
        shards=len(lines),
        r_feature=mean([line["r_feature"] for line in lines]),
        r_feature_chance=mean([line["r_feature_chance"] for line in lines]),
        teacher_top1=mean([line["teacher_top1"] for line in lines]),
        verifiers={
            name: mean([line["verifiers"][name] for line in lines])
            for name in lines[0]["verifiers"]
        },
        seconds=seconds,
    )
