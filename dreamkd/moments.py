"""Moments of what flows into batch-norm layers: taken, differentiated, put together, compared.

They are linear in the images, so that those of a batch follow from those of its parts. Those of all
calls of a forward pass lie end to end in one vector: what is done with them is done once, and not
once for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Moments(NamedTuple):
    """What flows into one layer, or into all calls end to end, about the running mean m.

        offset = E[x - m],  square = E[(x - m)^2]

    Means over positions of each row of a layer's input, (B, C), or of all of them, (C,): those of a
    batch are the means of its rows, and the weighted means of its parts.
    """

    offset: Tensor
    square: Tensor

    @property
    def var(self) -> Tensor:
        """Biased variance, square - offset^2, never below 0."""
        return _variance(self.offset, self.square)


def _variance(offset: Tensor, square: Tensor) -> Tensor:
    # Compiled code calls it itself: the compiler of torch 2.8 knows no property of a named tuple.
    return (square - offset.square()).clamp_min(0)


class Stored(NamedTuple):
    """The running variances of all batch-norm calls of a forward pass, beside `Moments` of them."""

    var: Tensor  # (C,) float32, end to end
    call: Tensor  # int64 (C,): which call a channel belongs to
    places: Tensor  # int64 (L, widest): where the channels of a call are, C where it has no more

    @classmethod
    def of(cls, variances: Sequence[Tensor]) -> Stored:
        """Lay out `variances`, (C_l,) of each call, one at least, in the order of execution."""
        widths = torch.tensor([len(values) for values in variances])
        steps = torch.arange(int(widths.max()))
        starts, total = (widths.cumsum(0) - widths)[:, None], int(widths.sum())
        var = torch.cat([values.detach().float() for values in variances])
        call = torch.arange(len(widths)).repeat_interleave(widths)
        places = torch.where(steps < widths[:, None], starts + steps, total)
        return cls(var, call.to(var.device), places.to(var.device))

    def sums(self, values: Tensor) -> Tensor:
        """Of each call, the sum over its channels: (..., C) -> (..., L)."""
        return F.pad(values, (0, 1))[..., self.places].sum(-1)


def moments(x: Tensor, running_mean: Tensor) -> Moments:
    """First and second moment per row and channel of `x` (B, C, ...), in one pass over the data.

    The shift by m keeps float32 exact where the mean is many standard deviations from zero; `x` may
    be of lower precision and is never copied to float32 once compiled.

    Returns: (B, C), float32; float64 of float64.
    """
    mean = running_mean
    if mean.dtype != (dtype := torch.promote_types(x.dtype, torch.float32)):
        mean = mean.to(dtype)
    # The compiler finds the backward pass by itself, and a Function costs it thrice the time.
    take = _moments if torch.compiler.is_compiling() else _Moments.apply
    return Moments(*take(x, mean))


def _moments(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    centred = _centred(x, mean)
    if x.ndim == 2:
        return centred, centred.square()
    # Row by row: what was just written is still in the cache, and the compiler joins this loop with
    # the layer's own. A product, since it would repeat a division for every value going back.
    within, share = tuple(range(2, x.ndim)), math.prod(x.shape[:2]) / x.numel()
    return centred.sum(within) * share, centred.square().sum(within) * share


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    wide = x if x.dtype == mean.dtype else x.to(mean.dtype)
    return wide - mean.view(-1, *[1] * (x.ndim - 2))


class _Moments(torch.autograd.Function):
    """E[x - m] and E[(x - m)^2] of each row, of which only x is kept for the backward pass.

    dx = (d_offset + 2 (x - m) d_square) / positions
    """

    @staticmethod
    def forward(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        return _moments(x, mean)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, offset: Tensor, square: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        share = math.prod(x.shape[:2]) / x.numel()
        level, slope = (
            values.view(*x.shape[:2], *[1] * (x.ndim - 2))
            for values in (offset * share, square * (2 * share))
        )
        return (_centred(x, mean) * slope + level).to(x.dtype), None


def materialised(values: Tensor) -> Tensor:
    """The same values, as a tensor of their own once compiled.

    The compiler would put the arithmetic that leads to (C,) values into the loop over all of x,
    divisions and square roots included; a strided view of them has to exist in memory.
    """
    return values.as_strided(values.shape, values.stride())


def of_batch(calls: Sequence[Moments]) -> Moments:
    """From those of the rows of each call, (B, C_l), those of the batch, end to end, (C,)."""
    together: list[Tensor] = []
    for values in zip(*calls, strict=True):
        if len({len(rows) for rows in values}) == 1:
            rows = torch.cat(values, 1)  # one sum over images for all layers
            together.append(rows.sum(0) * (1 / len(rows)))
        else:  # some layers see positions in the place of images
            together.append(torch.cat([rows.mean(0) for rows in values]))
    return Moments(*together)


def of_images(calls: Sequence[Moments], *, count: int) -> Moments:
    """Likewise of each of `count` images by itself, (count, C).

    Networks that fold positions into the batch dimension keep an image's rows together. Rows whose
    number is no multiple of the images' are not theirs, such as those of a parameter, and the same
    for each.
    """
    each = [[_of_each(rows, count) for rows in call] for call in calls]
    return Moments(*(torch.cat(values, 1) for values in zip(*each, strict=True)))


def _of_each(rows: Tensor, count: int) -> Tensor:
    if len(rows) % count:
        return rows.mean(0).expand(count, -1)
    return rows.view(count, -1, rows.shape[1]).mean(1)


def blend(parts: Sequence[Moments], weights: Sequence[float | Tensor]) -> Moments:
    """Moments of a whole from those of its parts; `weights` sum to 1."""
    return Moments(*(_weighted(tensors, weights) for tensors in zip(*parts, strict=True)))


def in_place_of(whole: Moments, chunk: Moments, *, share: float) -> Moments:
    """The moments of the whole batch, with the gradient of one chunk, `share` of it, in them."""
    return Moments(
        whole.offset + share * (chunk.offset - chunk.offset.detach()),
        whole.square + share * (chunk.square - chunk.square.detach()),
    )


class Average(NamedTuple):
    """A moving average of the moments of former batches, and its weight against a new batch's."""

    moments: Moments
    momentum: float | Tensor

    def including(self, moments: Moments) -> Moments:
        """Moved towards the moments of another batch."""
        return blend([self.moments, moments], [self.momentum, 1 - self.momentum])


def _weighted(tensors: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """sum_i weights_i tensors_i."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + tensor * weight
    return total


def distances(moments: Moments, stored: Stored) -> Tensor:
    """The terms of R_feature (Yin et al. 2020, Eq. 4): (L,), one for each batch-norm call.

    ||mean_l - running_mean_l||_2 + ||var_l - running_var_l||_2
    """
    of_mean, of_var = _Distances.apply(*moments, *stored)
    norms: Tensor = of_mean + of_var
    return norms


class _Distances(torch.autograd.Function):
    """||offset_l||_2 and ||miss_l||_2 of every call l, where miss = var - running_var.

    A length of zero has no gradient, where the root of a sum of squares has none that is finite.
    """

    @staticmethod
    def forward(offset: Tensor, square: Tensor, *of: Tensor) -> tuple[Tensor, Tensor]:
        stored = Stored(*of)
        miss = _variance(offset, square) - stored.var
        of_mean, of_var = stored.sums(torch.stack([offset, miss]).square()).sqrt()
        return of_mean, of_var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        offset, square, var, call, _ = inputs
        ctx.save_for_backward(offset, square, var, call, *output)

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor) -> tuple[Tensor | None, ...]:
        offset, square, stored, call, of_mean, of_var = ctx.saved_tensors
        var = _variance(offset, square)
        toward = torch.where(of_mean > 0, to_mean / of_mean, 0)[call] * offset
        away = torch.where(of_var > 0, to_var / of_var, 0)[call] * (var - stored)
        away = torch.where(var > 0, away, 0)
        of_offset, of_square = materialised(toward - 2 * offset * away), materialised(away)
        return of_offset, of_square, None, None, None


def sampling_level(images: Moments, stored: Stored) -> float:
    """R_feature that a batch of as many and as varied images shows by chance (host sync).

        sum_l || sd(offset) / sqrt(B) ||_2 + || sd(square - 2 mean(offset) offset) / sqrt(B) ||_2

    The second term is the sampling error of square - offset^2 to first order. It asks how far the
    statistics of B images lie from those of the population they are drawn from, if that population
    is the one that was stored; what a batch shows beyond it is a difference of populations.

    Args: images: of each, all calls end to end, (B, C).
    """
    var = images.square - 2 * images.offset.mean(0) * images.offset
    errors = torch.stack([images.offset, var]).var(1) / len(var)  # (2, C)
    return float(stored.sums(errors).sqrt().sum())
