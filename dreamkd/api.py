"""What `import dreamkd` offers: the commands as functions, their options as keywords.

    teacher = dreamkd.load("resnet50")
    run = dreamkd.invert(teacher, classes="0-9", per_class=8)
    for image, label, record in dreamkd.read(run):
        ...

An option is written as on the command line (docs/cli.md), with `_` for `-`; its value as a Python
value or as text. What is not legal raises the same `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamkd import distillation, formats, inversion, models
from dreamkd.config import DistillConfig, InvertConfig, ModelConfig, merge
from dreamkd.distillation import Distillation
from dreamkd.engine import ordinary
from dreamkd.errors import ConfigError
from dreamkd.events import OnEvent, ignore
from dreamkd.inversion import Inversion
from dreamkd.models import Classifier

__all__ = ["Classifier", "distill", "invert", "load", "read"]

#: As of `dreamkd.models.load`; the network is the same in whatever modes of torch it is called.
load = ordinary()(models.load)


def invert(
    model: Classifier | str | Path,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Inversion:
    """Turn a classifier into images; as `dreamkd invert MODEL --OPTION VALUE ...`.

    Args:
        model: a network, whose card says what options like `mean` would; or what `load` takes.
        on_event: told of progress, terms and hints.
        should_stop: asked at every step; true ends the call with `Stopped`, resumably.
    Raises: as of `dreamkd.inversion.invert`.
    """
    config = merge(InvertConfig, {"model": _name(model), **options})
    _refuse_stated(config, model)
    return inversion.invert(
        config, teacher=_network(model), on_event=on_event, should_stop=should_stop
    )


def distill(
    teacher: Classifier | str | Path,
    student: Classifier | str | Path,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Distillation:
    """Train a student without the teacher's data; as `dreamkd distill --OPTION VALUE ...`.

    Args:
        teacher: a network, whose card says what options like `mean` would; or what `load` takes.
        student: the name of an architecture, trained from scratch; a file or a network to go on
            from, of which a copy learns.
        on_event: told of progress, terms and hints.
        should_stop: asked at every step; true ends the call with `Stopped`, resumably.
    Raises: as of `dreamkd.distillation.distill`.
    """
    names = {"teacher": _name(teacher), "student": _name(student)}
    config = merge(DistillConfig, {**names, **options})
    _refuse_stated(config, teacher)
    return distillation.distill(
        config,
        teacher=_network(teacher),
        student=_network(student),
        on_event=on_event,
        should_stop=should_stop,
    )


def read(
    run: Inversion | Distillation | str | Path,
) -> Iterator[tuple[Tensor, int, dict[str, Any]]]:
    """Yield the images of a run; what, and what it raises, as of `dreamkd.formats.read_run`."""
    return formats.read_run(run if isinstance(run, str | Path) else run.out)


def _refuse_stated(config: ModelConfig, model: Classifier | str | Path) -> None:
    """Refuse options that say what the card of a given network says.

    Raises: ConfigError: one was given.
    """
    if not isinstance(model, Classifier):
        return
    for field in fields(ModelConfig):
        stated = getattr(config, field.name) != field.default
        if stated and field.name != "trust_pickle":  # of other networks, too
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(f"{flag} has no effect with a given network: its own card says it")


def _name(model: Classifier | str | Path) -> str | Path:
    """What the settings and the default folder say; a network itself is known by its weights."""
    if isinstance(model, Classifier):
        return model.card.architecture.rpartition(":")[2]  # without the library
    return model


def _network(model: Classifier | str | Path) -> Classifier | None:
    return model if isinstance(model, Classifier) else None
