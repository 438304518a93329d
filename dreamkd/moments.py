"""Moments of what flows into a layer: how they are taken, differentiated, and put together.

They are linear in the images, so that those of a batch follow from those of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    rows = torch.stack([centred, centred.square()])[..., None].flatten(3).mean(3)  # (2, rows, C)
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


def in_place_of(whole: list[Moments], stats: list[Moments], *, share: float) -> list[Moments]:
    """The moments of the whole batch, with the gradient of one chunk's share in them.

    Args:
        whole: of the batch, one entry per layer. stats: of the chunk.
        share: of the batch that the chunk is.
    """
    return [
        theirs._replace(
            offset=theirs.offset + share * (ours.offset - ours.offset.detach()),
            square=theirs.square + share * (ours.square - ours.square.detach()),
        )
        for theirs, ours in zip(whole, stats, strict=True)
    ]


class Average(NamedTuple):
    """A moving average of the moments of former batches, and its weight against a new batch's."""

    stats: Sequence[Moments]
    momentum: float | Tensor

    def including(self, stats: Sequence[Moments]) -> list[Moments]:
        """Moved towards the moments of another batch."""
        return blend([self.stats, stats], [self.momentum, 1 - self.momentum])

    def state(self) -> dict[str, Tensor]:
        """Its moments as named tensors."""
        return {
            f"{i:04d}.{name}": value
            for i, layer in enumerate(self.stats)
            for name, value in layer._asdict().items()
        }

    @classmethod
    def restored(
        cls, state: Mapping[str, Tensor], momentum: float, *, device: str
    ) -> Average | None:
        """What gave `state`; None if that is empty."""
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in sorted(state.items()):
            layer, _, part = name.partition(".")
            layers.setdefault(layer, {})[part] = value.to(device)
        return cls([Moments(**layer) for layer in layers.values()], momentum) if layers else None


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

    Args: images: of `image_moments`, one entry per layer, (B, C), of two images at least.
    """
    level = 0.0
    for layer in images:
        var = layer.square - 2 * layer.offset.mean(0) * layer.offset
        for values in (layer.offset, var):
            level += float(torch.linalg.vector_norm(values.std(0) / len(values) ** 0.5))
    return level
