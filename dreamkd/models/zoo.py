"""Every architecture by name, whichever library it comes from.

A bare name is torchvision's where it exists there, else timm's (our own networks are timm names);
`torchvision:` and `timm:` force one; a tag of weights may follow a dot (`resnet50.a1_in1k`).
The libraries take seconds to import: for our own networks neither is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dreamkd.copying import give
from dreamkd.errors import ModelError, nearest
from dreamkd.events import OnEvent
from dreamkd.models import from_cifar
from dreamkd.models.building import Defaults, on_meta, seeded
from dreamkd.models.card import extents
from dreamkd.models.classifier import is_counter

BUNDLED = Path(__file__).parent / "bundled"

#: What to do with a network that no library has.
TO_GIVE_ONES_OWN = "a network of your own is given from Python, by dreamkd.Classifier.of"


@dataclass(frozen=True, order=True)
class Architecture:
    """A name in a library; `tag` names its weights, "" the default ones."""

    library: str  # "torchvision" or "timm"
    name: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    def exists(self) -> bool:
        """Whether the library has this name."""
        return self.name in _source(self.library, self.name).names()

    def defaults(self) -> Defaults:
        """Preprocessing and class count of the tagged weights."""
        defaults: Defaults = _source(self.library, self.name).defaults(self.name, self.tag)
        return defaults

    def build(
        self,
        *,
        num_classes: int,
        input_size: tuple[int, int, int],
        seed: int = 0,
        device: str = "cpu",
    ) -> nn.Module:
        """The network in eval mode with fresh weights drawn from `seed`, or with shapes alone.

        On the meta device nothing is allocated, unless the architecture cannot be built there.

        Raises:
            ModelError: the architecture does not take this input size or class count.
        """

        def fresh() -> nn.Module:
            module: nn.Module = _source(self.library, self.name).build(
                self.name, num_classes=num_classes, input_size=input_size
            )
            return module

        try:
            with seeded(seed):
                return (_shapes_or_all(fresh) if device == "meta" else fresh()).eval()
        except ModelError:
            raise
        # Constructors refuse a size in their own ways: assertions, TypeError, wrong shapes.
        except Exception as error:
            raise ModelError(
                f"{self} cannot be built for {num_classes} classes and input "
                f"{extents(input_size)}: {type(error).__name__}: {error}"
            ) from error


def _shapes_or_all(fresh: Any) -> nn.Module:
    try:
        return on_meta(fresh)
    except (NotImplementedError, RuntimeError):  # it computes with its weights while being built
        module: nn.Module = fresh()
        return module


def pretrained(
    architecture: Architecture, input_size: tuple[int, int, int], *, on_event: OnEvent
) -> nn.Module:
    """The network in eval mode with its published weights.

    Args: on_event: told of a download.

    Raises:
        ModelError: there are none, they cannot be had, or do not fit `input_size`.
    """
    name, tag = architecture.name, architecture.tag
    library = _library(architecture.library)
    if architecture.library == "timm":
        module: nn.Module = library.build_pretrained(name, tag, input_size, on_event=on_event)
        return module.eval()
    state = library.pretrained(name, tag, on_event=on_event)
    defaults = architecture.defaults()
    module = architecture.build(num_classes=defaults.num_classes, input_size=input_size)
    load_state(module, state, f"torchvision:{name}")
    return module


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` strictly; only counters of batches may be missing.

    Raises:
        ModelError: missing, unknown or differently shaped entries, a few of them named.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state and not is_counter(k)]
    unknown = [k for k in state if k not in own and not is_counter(k)]
    shaped = [k for k in own if k in state and state[k].shape != own[k].shape]
    shapes = [f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}" for k in shaped]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("misshapen", shapes))
        if names
    ]
    advice = ""
    if shapes and not missing and not unknown:
        advice = f"; {TO_GIVE_ONES_OWN}"
    elif (
        missing and not unknown and not shapes and {*missing} <= dict(module.named_buffers()).keys()
    ):
        advice = "; save the state_dict(), which holds more than the parameters"
    if problems:
        raise ModelError(f"{where}: the weights do not fit: {'; '.join(problems)}{advice}")
    give(module, {k: v for k, v in state.items() if k in own}, strict=False)


def resolve(text: str) -> Architecture:
    """The architecture that a name means.

    Raises:
        ModelError: no library knows it; the nearest name is given.
    """
    library, colon, name = text.rpartition(":")
    if colon and library not in _LIBRARIES:
        known = " or ".join(f"{name}:" for name in _LIBRARIES)
        raise ModelError(f"no model source {library + ':'!r}; write {known} before the name")
    bare, _, tag = name.partition(".")
    if bare in from_cifar.names() and library in ("", "timm") and not tag:
        return Architecture("timm", bare)
    for source in [library] if library else _LIBRARIES:
        if bare in _names(source) and (library or not tag or _has_tag(source, bare, tag)):
            return Architecture(source, bare, tag)
    known_names = _names(library) if library else all_names()
    raise ModelError(
        f"no model named {text!r}{nearest(bare, known_names)}; names are torchvision's and timm's, "
        f"bundled are {', '.join(bundled())}, and a checkpoint is given by its path"
    )


def bundled() -> tuple[str, ...]:
    """Names of the teachers that are part of the package."""
    return tuple(sorted(path.stem for path in BUNDLED.glob("*.safetensors")))


def all_names() -> tuple[str, ...]:
    """Every bare name that `resolve` knows, and the bundled teachers."""
    return (*bundled(), *dict.fromkeys(n for source in _LIBRARIES for n in _names(source)))


def architectures() -> list[Architecture]:
    """Every classifier of every library."""
    return [Architecture(source, name) for source in _LIBRARIES for name in _names(source)]


def _names(library: str) -> tuple[str, ...]:
    names: tuple[str, ...] = _library(library).names()
    return names


def _has_tag(library: str, name: str, tag: str) -> bool:
    try:
        _library(library).defaults(name, tag)
    except ModelError:
        return False
    return True


def _source(library: str, name: str) -> Any:
    """The module that knows the network: of our own, ours, which needs no timm."""
    return from_cifar if library == "timm" and name in from_cifar.names() else _library(library)


@cache
def _library(name: str) -> Any:
    """The module that speaks for a library, which it imports."""
    if name == "timm":
        from dreamkd.models import from_timm

        return from_timm
    from dreamkd.models import from_torchvision

    return from_torchvision


#: In the order in which bare names are looked up: the paper's teachers are torchvision's.
_LIBRARIES = ("torchvision", "timm")
