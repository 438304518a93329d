"""Batch-norm layers of any network, and the statistics of what flows into them.

A layer counts when it holds running statistics, whatever its class: BatchNorm1d/2d/3d,
SyncBatchNorm, timm's BatchNormAct2d, torchvision's and timm's frozen kinds. InstanceNorm keeps its
statistics per image and is left out.

Statistics are taken at the *input* of a layer: fused activations make its output useless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from dreamkd.errors import NoBatchNormError


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
        """Stored mean, (C,) (seed Eq. 5)."""
        mean = self.module.running_mean
        assert isinstance(mean, Tensor)
        return mean

    @property
    def running_var(self) -> Tensor:
        """Stored variance, (C,) (seed Eq. 6)."""
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


class Moments(NamedTuple):
    """What flows into one layer, about its running mean m, beside the stored statistics; each (C,).

        offset = E[x - m],  square = E[(x - m)^2]

    Both are means over images and positions: those of a batch are the weighted means of its parts.
    """

    offset: Tensor
    square: Tensor
    running_mean: Tensor
    running_var: Tensor

    @property
    def mean(self) -> Tensor:
        """E[x] = offset + m."""
        return self.offset + self.running_mean

    @property
    def var(self) -> Tensor:
        """Biased variance, square - offset^2, never below 0."""
        return (self.square - self.offset.square()).clamp_min(0)


def layers(model: nn.Module) -> list[Layer]:
    """Every layer that holds running statistics, in order of definition, each module once."""
    return [Layer(name, module) for name, module in model.named_modules() if _holds(module)]


def _holds(module: nn.Module) -> bool:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
        return False
    return mean.ndim == 1 and mean.shape == var.shape and not isinstance(module, _InstanceNorm)


def trace(model: nn.Module, inputs: Tensor) -> list[Call]:
    """Run `inputs` (B, C, H, W) once and list the calls of batch-norm layers in execution order."""
    calls: list[Call] = []
    handles = []
    try:
        for layer in layers(model):

            def record(_: nn.Module, args: tuple[Tensor, ...], layer: Layer = layer) -> None:
                calls.append(Call(layer, tuple(args[0].shape)))

            handles.append(layer.module.register_forward_pre_hook(record))
        with torch.inference_mode():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def moments(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Moments:
    """First and second moment per channel of `x` (B, C, ...), in one pass over the data.

    The shift by m keeps float32 exact where the mean is many standard deviations from zero; `x` may
    be of lower precision and is never copied to float32 once compiled.

    Returns: float32; float64 of float64.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, var = running_mean.to(dtype), running_var.to(dtype)
    offset, square = _Moments.apply(x, mean)
    return Moments(offset, square, mean, var)


class _Moments(torch.autograd.Function):
    """E[x - m] and E[(x - m)^2] per channel; the gradient is linear in x.

    dx = (d_offset + 2 (x - m) d_square) / N
    """

    @staticmethod
    def forward(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        centred = x.to(mean.dtype) - _per_channel(mean, x)
        share = mean.numel() / x.numel()
        # First image by image: what was just written is still in the cache, and the compiler joins
        # this loop with the layer's own.
        centred = centred.flatten(2) if x.ndim > 2 else centred[:, :, None]
        return centred.sum(2).sum(0) * share, centred.square().sum(2).sum(0) * share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, offset: Tensor, square: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        share = mean.numel() / x.numel()
        slope, level = computed(square * (2 * share)), computed(offset * share)
        centred = x.to(mean.dtype) - _per_channel(mean, x)
        gradient = centred * _per_channel(slope, x) + _per_channel(level, x)
        return gradient.to(x.dtype), None


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) beside (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))


def computed(values: Tensor) -> Tensor:
    """The same values, as a tensor of their own once compiled.

    The compiler would put the arithmetic that leads to (C,) values into the loop over all of x,
    divisions and square roots included; a strided view of them has to exist in memory.
    """
    return values.as_strided(values.shape, values.stride())


def image_moments(x: Tensor, running_mean: Tensor, running_var: Tensor, *, count: int) -> Moments:
    """Like `moments` of each of `count` images by itself: offset and square of shape (count, C).

    Networks that fold positions into the batch dimension keep an image's rows together.
    """
    shape = (-1, *[1] * (x.ndim - 2))
    centred = x.float() - running_mean.float().view(shape)
    rows = torch.stack([centred, centred.square()]).flatten(3).mean(3)  # (2, rows, C)
    offset, square = rows.view(2, count, -1, rows.shape[2]).mean(2)
    return Moments(offset, square, running_mean.float(), running_var.float())


def blend(parts: Sequence[Sequence[Moments]], weights: Sequence[float | Tensor]) -> list[Moments]:
    """Moments of a whole from those of its parts, layer by layer; `weights` sum to 1."""
    return [
        Moments(
            _weighted([layer.offset for layer in layers_], weights),
            _weighted([layer.square for layer in layers_], weights),
            layers_[0].running_mean,
            layers_[0].running_var,
        )
        for layers_ in zip(*parts, strict=True)
    ]


def _weighted(tensors: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """sum_i weights_i tensors_i."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + tensor * weight
    return total


def sampling_level(images: Sequence[Moments]) -> float:
    """R_feature that a batch of as many and as varied images shows by chance (host sync).

        sum_l || sd(offset) / sqrt(B) ||_2 + || sd(square - 2 mean(offset) offset) / sqrt(B) ||_2

    The second term is the sampling error of square - offset^2 to first order. It asks how far the
    statistics of B images lie from those of the population they are drawn from, if that population
    is the one that was stored; what a batch shows beyond it is a difference of populations.

    Args: images: of `image_moments`, one entry per layer, (B, C).
    """
    level = 0.0
    for layer in images:
        var = layer.square - 2 * layer.offset.mean(0) * layer.offset
        for values in (layer.offset, var):
            level += float(torch.linalg.vector_norm(values.std(0) / len(values) ** 0.5))
    return level


#: How the description of dead channels begins.
DEAD = "variance is zero"


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


def dead_channels(layer: Layer) -> str:
    """Channels of variance 0, in words; else "". Trained networks have some: no obstacle."""
    dead = int((layer.running_var == 0).sum())
    return f"{DEAD} in {dead} channels" if dead else ""


def require_statistics(model: nn.Module, *, name: str) -> None:
    """Refuse a network whose statistics R_feature cannot match.

    Raises: NoBatchNormError: no layer has running statistics, one is broken, or all untrained.
    """
    found = layers(model)
    broken = [f"{layer.name}: {defect(layer)}" for layer in found if defect(layer)]
    if not found:
        reason = "it has no batch-norm layer"
    elif broken:
        reason = f"{len(broken)} of {len(found)} batch-norm layers are broken ({broken[0]})"
    elif all(is_untrained(layer) for layer in found):
        reason = f"all {len(found)} batch-norm layers look untrained (mean 0, variance 1)"
    else:
        return
    raise NoBatchNormError(
        f"{name}: {reason}, so R_feature has nothing to match: --method deepdream works "
        "without it, --bn-prior MODEL takes another network's"
    )


Record = Callable[[Tensor, Tensor, Tensor], Moments]


class Watch:
    """Collects one `Moments` per batch-norm call since the last `take`."""

    def __init__(self, record: Record) -> None:
        self._calls: list[Moments] = []
        self._of = record

    def take(self) -> list[Moments]:
        """The moments since the last `take`, in execution order; empties the list."""
        calls, self._calls = self._calls, []
        return calls

    def _record(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        mean, var = module.running_mean, module.running_var
        self._calls.append(self._of(args[0], mean, var))  # type: ignore[arg-type]


@contextmanager
def watch(model: nn.Module, record: Record = moments) -> Iterator[Watch]:
    """Watch every batch-norm call of `model` while the block lasts.

    Enter before compiling: the hooks then are part of the graph. They are removed when the block
    ends, also by an exception.

        with watch(model) as watched:
            logits = model(inputs)
            stats = watched.take()

    Args: record: what is taken of (input, running mean, running variance) of each call.
    """
    watched = Watch(record)
    handles = []
    try:
        for layer in layers(model):
            handles.append(layer.module.register_forward_pre_hook(watched._record))
        yield watched
    finally:
        for handle in handles:
            handle.remove()
