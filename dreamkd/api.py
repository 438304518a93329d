"""What `import dreamkd` offers: the commands as functions, their options as keywords.

    teacher = dreamkd.load("resnet50")
    run = dreamkd.invert(teacher, classes="0-9", per_class=8)
    for image, label, record in dreamkd.read(run):
        ...

An option is written as on the command line (docs/cli.md), with `_` for `-`; its value as text or as
what Python has for it (`dreamkd.keywords`): numbers, lists and arrays, True and False for on and
off, a device, the result of a run for its folder; None as if it were left out. What is not legal
raises the same `ConfigError`.

A network that is given stays as it is: its mode, what learns of it, its hooks, device and memory.
Nothing is printed; Ctrl-C is a `KeyboardInterrupt`, and the same call goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from dreamkd import assessment, distillation, formats, inversion, keywords, models
from dreamkd.config import (
    DistillConfig,
    EvalConfig,
    InspectConfig,
    InvertConfig,
    ModelConfig,
    merge,
)
from dreamkd.distillation import Distillation
from dreamkd.engine import ordinary
from dreamkd.errors import ConfigError, Stopped
from dreamkd.evaluation import Evaluation
from dreamkd.events import OnEvent, ignore
from dreamkd.inspection import Inspection
from dreamkd.inversion import Inversion
from dreamkd.models import Classifier
from dreamkd.networks import Own

__all__ = [
    "Classifier",
    "Stopped",
    "distill",
    "evaluate",
    "inspect",
    "invert",
    "load",
    "read",
]

Model: TypeAlias = Classifier | str | PathLike[str]
Config = TypeVar("Config", InspectConfig, EvalConfig, InvertConfig, DistillConfig)

#: As of `dreamkd.models.load`; the network is the same in whatever modes of torch it is called.
load = ordinary()(models.load)


def inspect(model: Model, *, on_event: OnEvent | None = None, **options: Any) -> Inspection:
    """List the batch-norm layers of a classifier; as `dreamkd inspect MODEL --OPTION VALUE ...`.

    Args:
        model: a network, whose card says what options like `mean` would; or what `load` takes.
        on_event: told of progress and hints.
    Raises: as of `dreamkd.assessment.inspect`.
    """
    config = _settings(InspectConfig, {"model": model}, options)
    if isinstance(model, Classifier) and config.no_pretrained:
        raise ConfigError("--no-pretrained has no effect with a given network")
    return assessment.inspect(config, model=_network(model), on_event=on_event or ignore)


def evaluate(
    model: Model,
    data: Any,
    *,
    teacher: Model | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a classifier on labelled images; as `dreamkd eval MODEL --data DATA ...`.

    Args:
        model: a network, whose card says what options like `mean` would; or what `load` takes.
        data: where the images are, as `--data` says it.
        teacher: likewise, of the same classes.
        on_event: told of progress and hints.
    Raises: as of `dreamkd.assessment.evaluate`.
    """
    config = _settings(EvalConfig, {"model": model, "teacher": teacher}, options, data=data)
    return assessment.evaluate(
        config, model=_network(model), teacher=_network(teacher), on_event=on_event or ignore
    ).found


def invert(
    model: Model,
    *,
    student: Model | None = None,
    bn_prior: Model | None = None,
    verifier: Model | Sequence[Model] | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Inversion:
    """Turn a classifier into images; as `dreamkd invert MODEL --OPTION VALUE ...`.

    Args:
        model: a network, whose card says what options like `mean` would; or what `load` takes.
        student: likewise, of `method="adaptive"`.
        bn_prior: likewise, whose statistics are matched instead.
        verifier: likewise, or several of them.
        on_event: told of progress, terms and hints.
        should_stop: asked at every step; true ends the call with `Stopped`, resumably.
    Raises: as of `dreamkd.inversion.invert`.
    """
    if isinstance(verifier, Classifier):
        verifier = [verifier]
    named = {"model": model, "student": student, "bn_prior": bn_prior, "verifier": verifier}
    verifiers = verifier if isinstance(verifier, list | tuple) else ()
    return inversion.invert(
        _settings(InvertConfig, named, options),
        own=Own(
            teacher=_network(model),
            student=_network(student),
            prior=_network(bn_prior),
            verifiers=[*map(_network, verifiers)],
        ),
        on_event=on_event or ignore,
        should_stop=should_stop or _never,
    )


def distill(
    teacher: Model,
    student: Model,
    *,
    bn_prior: Model | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options: Any,
) -> Distillation:
    """Train a student without the teacher's data; as `dreamkd distill --OPTION VALUE ...`.

    Args:
        teacher: a network, whose card says what options like `mean` would; or what `load` takes.
        student: the name of an architecture, trained from scratch; a file or a network to go on
            from, of which a copy learns.
        bn_prior: a network whose statistics are matched instead; or what `load` takes.
        on_event: told of progress, terms and hints.
        should_stop: asked at every step; true ends the call with `Stopped`, resumably.
    Raises: as of `dreamkd.distillation.distill`.
    """
    named = {"teacher": teacher, "student": student, "bn_prior": bn_prior}
    return distillation.distill(
        _settings(DistillConfig, named, options),
        own=Own(teacher=_network(teacher), student=_network(student), prior=_network(bn_prior)),
        on_event=on_event or ignore,
        should_stop=should_stop or _never,
    )


def read(
    run: Inversion | Distillation | str | PathLike[str],
) -> Iterator[tuple[Tensor, int, dict[str, Any]]]:
    """Yield the images of a run; what, and what it raises, as of `dreamkd.formats.read_run`."""
    return formats.read_run(run.out if isinstance(run, Inversion | Distillation) else run)


def _settings(
    config: type[Config], networks: dict[str, Any], options: dict[str, Any], **more: Any
) -> Config:
    """The settings of a command; the first of the networks is the one that options describe.

    Raises: ConfigError: an option is not legal, or says of a given network what its card says.
    """
    named = {name: _name(name, model) for name, model in networks.items()}
    values = {
        name: value.out if isinstance(value, Inversion | Distillation) else value
        for name, value in {**named, **more, **options}.items()
    }
    built = merge(config, keywords.given(config, values))
    if isinstance(next(iter(networks.values())), Classifier):
        for field in fields(ModelConfig):
            stated = getattr(built, field.name) != field.default
            if stated and field.name != "trust_pickle":  # of other networks, too
                flag = "--" + field.name.replace("_", "-")
                raise ConfigError(
                    f"{flag} has no effect with a given network: its own card says it"
                )
    return built


def _name(option: str, model: Any) -> Any:
    """What the settings and the default folder say; a network itself is known by its weights.

    Raises: ConfigError: it is a network without a card.
    """
    if isinstance(model, list | tuple):
        return [_name(option, one) for one in model]
    if isinstance(model, Classifier):
        return model.card.architecture.partition(":")[2]  # without the library
    if isinstance(model, nn.Module):
        raise ConfigError(
            f"{option}: a network alone does not say what its images are: "
            "dreamkd.Classifier.of(network, name=..., num_classes=..., input_size=..., ...) does"
        )
    return model


def _network(model: Any) -> Classifier | None:
    return model if isinstance(model, Classifier) else None


def _never() -> bool:
    return False
