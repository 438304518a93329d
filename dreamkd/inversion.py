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
from typing import Any

from dreamkd import batchnorm, models
from dreamkd.bank import Bank
from dreamkd.config import InvertConfig
from dreamkd.engine import Runtime, enough_memory
from dreamkd.errors import ConfigError
from dreamkd.events import Finished, Note, OnEvent, ignore
from dreamkd.formats import FORMATS
from dreamkd.labels import label_range, parse_classes, plan_batches
from dreamkd.preparation import prepare, settled, try_out
from dreamkd.randomness import generator_for
from dreamkd.runs import default_folder, open_run, requested_settings
from dreamkd.synthesis import Synthesiser, watcher
from dreamkd.verification import Verifiers


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """What `invert` made."""

    out: str
    images: int
    shards: int
    r_feature: float  # mean over batches, of the kept images; 0 without batch norm
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
    began = time.perf_counter()
    teacher = models.load(config.model, **config.load_arguments())
    on_event(Note(f"teacher: {teacher.card.source}"))
    if config.method != "deepdream":
        batchnorm.require_statistics(teacher.module, name=teacher.card.architecture)
    verifiers = Verifiers.load(
        config.verifier, teacher=teacher, trust_pickle=config.trust_pickle, on_event=on_event
    )
    card = teacher.card
    classes = parse_classes(
        config.classes, num_classes=card.num_classes, class_names=card.class_names
    )
    count = len(classes) * config.per_class
    # Whatever can be refused is refused before anything is created.
    Runtime.settle(config)
    _deal(count, settled(config, teacher))
    try_out(teacher)
    requested = requested_settings(config)
    folder = Path(config.out or default_folder("invert", config.model, requested))
    with open_run(folder) as run, ExitStack() as stack:
        config, runtime = prepare(
            run,
            config,
            teacher=teacher,
            image_steps=lambda c: count * int(c.image_steps),
            inputs={"verifiers": verifiers.sha256()},
        )
        on_event = run.listener(on_event)
        on_event(Note(f"run: {folder}; {runtime.describe()}; compile {config.compile}"))
        names = card.class_names or [str(label) for label in range(card.num_classes)]
        files = FORMATS[config.format](folder, names)
        bank = stack.enter_context(Bank(run, files=files, on_event=on_event))
        plan = _deal(count, config, made=bank.lines)
        missing = [k for k in range(len(plan)) if not bank.holds(k)]
        if missing:
            run.begin()
            stack.enter_context(verifiers.on(runtime.device))
            synthesiser = stack.enter_context(
                Synthesiser(
                    teacher,
                    config,
                    runtime=runtime,
                    statistics=config.method != "deepdream",
                    compiled=config.compile == "on",
                    on_event=on_event,
                )
            )
        for k in missing:
            start, stop = plan[k]
            with enough_memory("--image-batch-size"):
                batch = synthesiser.batch(
                    label_range(classes, start, stop, seed=config.seed),
                    generator=generator_for(config.seed, "batch", k),
                    on_step=watcher(f"batch {k + 1} of {len(plan)}", config, on_event, should_stop),
                )
            predictions = verifiers.predictions(batch.images)
            bank.add(
                k,
                batch.images,
                batch.labels,
                start=start,
                facts=batch.facts(class_names=card.class_names, predictions=predictions),
                line=batch.summary(predictions=predictions),
            )
        bank.write_contact_sheet()
        result = _result(bank, folder, time.perf_counter() - began)
        run.finish({k: v for k, v in result.to_json().items() if k not in ("out", "seconds")})
        on_event(Finished("invert", result.seconds))
    return result


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
        teacher_top1=mean([line["teacher_top1"] for line in lines]),
        verifiers={
            name: mean([line["verifiers"][name] for line in lines])
            for name in lines[0]["verifiers"]
        },
        seconds=seconds,
    )
