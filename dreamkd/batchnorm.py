"""Batch-norm layers of any network, and the statistics of what flows into them.

A layer counts when it holds running statistics, whatever its class: BatchNorm1d/2d/3d,
SyncBatchNorm, timm's BatchNormAct2d, torchvision's and timm's frozen kinds. InstanceNorm keeps its
statistics per image and is left out.

Statistics are taken at the *input* of a layer: fused activations make its output useless.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dreamkd.errors import NoBatchNormError
from dreamkd.moments import Moments, Stored, moments


@dataclass(frozen=True)
class Layer:
    """One layer with running statistics."""

    name: str
    module: nn.Module

    @property
    def kind(self) -> str:
        """Class name of the module."""
        return type(self.module).__name__

    @property
    def running_mean(self) -> Tensor:
        """Stored mean, (C,) (Yin et al. 2020, Eq. 5)."""
        mean = self.module.running_mean
        assert isinstance(mean, Tensor)
        return mean

    @property
    def running_var(self) -> Tensor:
        """Stored variance, (C,) (Yin et al. 2020, Eq. 6)."""
        var = self.module.running_var
        assert isinstance(var, Tensor)
        return var

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.running_mean.numel()


class Call(NamedTuple):
    """One call of a layer during a forward pass; `shape` is its input's, (B, C, ...)."""

    layer: Layer
    shape: tuple[int, ...]


def layers(model: nn.Module) -> list[Layer]:
    """Every layer that holds running statistics, in order of definition, each module once."""
    return [Layer(name, module) for name, module in model.named_modules() if _holds(module)]


def _holds(module: nn.Module) -> bool:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
        return False
    return mean.ndim == 1 and mean.shape == var.shape and not isinstance(module, _InstanceNorm)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Every mean and variance that training moves; the frozen kinds' are left out."""
    found = ((norm.running_mean, norm.running_var) for norm in _learning(model))
    return [statistic for pair in found for statistic in pair if statistic is not None]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running statistics by their plain mean over `batches`, each (B, C, H, W)."""
    norms = _learning(model)
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for inputs in batches:
            model(inputs)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        model.eval()


def _learning(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def trace(model: nn.Module, inputs: Tensor) -> list[Call]:
    """Run `inputs` (B, C, H, W) once and list the calls of batch-norm layers in execution order."""
    calls: list[Call] = []
    handles = []
    try:
        for layer in layers(model):

            def record(
                _: nn.Module, args: tuple[Any, ...], named: dict[str, Any], layer: Layer = layer
            ) -> None:
                calls.append(Call(layer, tuple(_input(args, named).shape)))

            handles.append(layer.module.register_forward_pre_hook(record, with_kwargs=True))
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _input(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """What a layer was called with, by whatever name."""
    first: Tensor = args[0] if args else next(iter(named.values()))
    return first


def is_untrained(layer: Layer) -> bool:
    """Whether mean is 0 and variance 1 in every channel: nothing was learned, or no weights."""
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


def defect(layer: Layer) -> str:
    """What makes the statistics useless (NaN, infinite, negative variance), in words; else ""."""
    mean, var = layer.running_mean, layer.running_var
    for values, what in ((mean, "mean"), (var, "variance")):
        if not bool(values.isfinite().all()):
            return f"{what} is NaN or infinite in {int((~values.isfinite()).sum())} channels"
    negative = int((var < 0).sum())
    return f"variance is negative in {negative} channels" if negative else ""


def dead_channels(layer: Layer) -> int:
    """Channels of variance 0. Trained networks have some: their terms of R_feature are defined."""
    return int((layer.running_var == 0).sum())


def unusable(found: Sequence[Layer]) -> str:
    """Why R_feature cannot match what these layers store, in words; "" if it can."""
    broken = [f"{layer.name}: {defect(layer)}" for layer in found if defect(layer)]
    if not found:
        return "it has no batch norm"
    if broken:
        return f"{len(broken)} of {len(found)} batch-norm layers are broken ({broken[0]})"
    if all(is_untrained(layer) for layer in found):
        return f"all {len(found)} batch-norm layers look untrained (mean 0, variance 1)"
    return ""


def unreached(found: Sequence[Layer]) -> str:
    """Why R_feature cannot match layers that no forward pass reaches, in words."""
    return f"none of its {len(found)} batch-norm layers runs"


def require_statistics(model: nn.Module, *, name: str) -> None:
    """Refuse a network whose statistics R_feature cannot match.

    Raises: NoBatchNormError: no layer has running statistics, one is broken, or all untrained.
    """
    if reason := unusable(layers(model)):
        raise _nothing_to_match(name, reason)


def _nothing_to_match(name: str, reason: str) -> NoBatchNormError:
    return NoBatchNormError(
        f"{name}: {reason}, so R_feature has nothing to match: `invert --method deepdream` works "
        "without it, --bn-prior MODEL takes another network's"
    )


def stored(model: nn.Module, input_size: tuple[int, int, int], *, name: str) -> Stored:
    """What `model` stores for the batch-norm calls of a forward pass of images (C, H, W).

    Raises: NoBatchNormError: there is no call; the line is about `name`.
    """
    found = layers(model)
    device = next((layer.running_var.device for layer in found), None)
    calls = trace(model, torch.zeros(1, *input_size, device=device))
    if not calls:
        raise _nothing_to_match(name, unreached(found))
    return Stored.of([call.layer.running_var for call in calls])


class Watch:
    """Collects the moments of batch-norm calls."""

    def __init__(self) -> None:
        self._calls: list[Moments] = []

    def begin(self) -> None:
        """Forget what was collected, as by a forward pass that failed.

        Within a compiled function, call it there: what it adds to a list of its own stays inside.
        """
        self._calls = []

    def take(self) -> list[Moments]:
        """Of the rows of each call's input since `begin`, in execution order; forgets them."""
        calls, self._calls = self._calls, []
        return calls

    def _record(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        mean = layer.running_mean
        self._calls.append(moments(_input(args, named), mean))  # type: ignore[arg-type]


@contextmanager
def watch(model: nn.Module) -> Iterator[Watch]:
    """Watch every batch-norm call of `model` while the block lasts.

    Enter before compiling: the hooks then are part of the graph. They are removed when the block
    ends, also by an exception.

        with watch(model) as watched:
            logits = model(inputs)
            found = of_batch(watched.take())
    """
    watched = Watch()
    handles = []
    try:
        for layer in layers(model):
            hook = layer.module.register_forward_pre_hook(watched._record, with_kwargs=True)
            handles.append(hook)
        yield watched
    finally:
        for handle in handles:
            handle.remove()
