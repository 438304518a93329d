"""`inspect` and `eval` as their settings say: networks loaded, images opened, one looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dreamkd import data, evaluation, inspection, models
from dreamkd.config import EvalConfig, InspectConfig
from dreamkd.engine import Runtime, enough_memory, ordinary
from dreamkd.errors import ConfigError
from dreamkd.evaluation import Evaluation
from dreamkd.events import Note, OnEvent, ignore
from dreamkd.files import exists
from dreamkd.inspection import Inspection
from dreamkd.models import Card, Classifier


class Assessment(NamedTuple):
    """What was measured, of which network, and how it was computed."""

    found: Evaluation
    card: Card
    runtime: Runtime


@ordinary()
def inspect(
    config: InspectConfig, *, model: Classifier | None = None, on_event: OnEvent = ignore
) -> Inspection:
    """List the batch-norm layers of a network; compare images with them, save it, if asked.

    Args: model: the network, which stays as it is, else what `config.model` names.

    Raises:
        ConfigError: the file to save it to is there already.
        ModelError: it cannot be loaded, or does not run at its input size.
        DataError: the images cannot be read.
        RunError: the file cannot be written, or memory ran out.
    """
    if config.save is not None and exists(Path(config.save), option="--save"):
        raise ConfigError(f"--save {config.save}: is there already; choose another file")
    weights: dict[str, Any] = (
        {"pretrained": False, "device": "meta"} if config.no_pretrained else {}
    )
    stated = weights | config.load_arguments()
    if model is not None:
        model = model.borrowed()
    else:
        model = models.load(config.model, **stated, on_event=on_event)
    on_event(Note(model.card.source))
    images = None
    if config.data is not None:
        how = data.Preprocessing.of(model.card)
        images = data.open_images(config.data, preprocessing=how, on_event=on_event)
        images = images.wanted_by(model.card)
        on_event(Note(images.source))
    with enough_memory("lower --input-size"):
        found = inspection.inspect(model, images, batch_size=config.batch_size)
    if config.save is not None:
        models.save(model, config.save)
        on_event(Note(f"written: {config.save}"))
    return found


@ordinary()
def evaluate(
    config: EvalConfig,
    *,
    model: Classifier | None = None,
    teacher: Classifier | None = None,
    on_event: OnEvent = ignore,
) -> Assessment:
    """Measure a network on labelled images, and how often another says the same.

    Args:
        model: the network, else what `config.model` names.
        teacher: the other, else what `config.teacher` names, if anything.

    Raises:
        ModelError: a network cannot be loaded, they are of other classes, or logits are not finite.
        DataError: the images cannot be read, or do not fit.
        RunError: the device ran out of memory.
    """
    runtime = Runtime.settle(config)
    if model is not None:
        model = model.borrowed()
    else:
        model = models.load(config.model, **config.load_arguments(), on_event=on_event)
    on_event(Note(model.card.source))
    if teacher is not None:
        teacher = teacher.borrowed()
    elif config.teacher is not None:
        trust = config.trust_pickle
        teacher = models.load_beside(config.teacher, trust_pickle=trust, on_event=on_event)
    if teacher is not None:
        on_event(Note(f"teacher: {teacher.card.source}"))
    names = ("interpolation", "crop_pct", "crop_mode")
    given = {name: getattr(config, name) for name in names}
    how = data.Preprocessing.of(model.card)
    images = data.open_images(config.data, preprocessing=how, on_event=on_event)
    images = images.wanted_by(model.card, **{k: v for k, v in given.items() if v is not None})
    images = images.labelled_by(model.card, on_event=on_event)
    on_event(Note(f"{images.source}; {runtime.describe()}"))
    with runtime.active():
        found = evaluation.evaluate(
            model,
            images,
            teacher=teacher,
            device=runtime.device,
            precision=runtime.precision,
            batch_size=config.batch_size,
            on_event=on_event,
        )
    return Assessment(found, model.card, runtime)
