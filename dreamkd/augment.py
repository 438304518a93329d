"""Per-image augmentation of batches: every image of a batch has its own draw.

Offsets are drawn outside the graph from an explicit generator; applying them is a plain function of
images and offsets, with a backward pass that gathers (never scatters), so that it is deterministic
on every device and fuses into the compiled step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor


class Roll(NamedTuple):
    """A circular shift and flip per image; `rows` and `columns` are source indices."""

    rows: Tensor  # (B, H) int64: row of the original that lands in row h
    columns: Tensor  # (B, W) int64
    rows_back: Tensor  # (B, H) int64: the inverse permutations
    columns_back: Tensor  # (B, W) int64


def draw_roll(
    size: tuple[int, int, int], *, shift: int, flip: bool, generator: Generator | None
) -> Roll:
    """Draw a shift of -shift..shift pixels on both axes and a fair flip, one per image.

    Args:
        size: (batch, height, width).
        shift: largest shift in pixels; 0 for none.
        flip: whether half of the images are mirrored left to right.
        generator: source of randomness (CPU); the draw does not depend on the device of the images.
    """
    batch, height, width = size
    draws = torch.randint(-shift, shift + 1, (2, batch, 1), generator=generator)
    mirror = torch.randint(0, 2, (batch, 1), generator=generator).bool() if flip else None
    rows = (torch.arange(height) - draws[0]) % height
    columns = (torch.arange(width) - draws[1]) % width
    if mirror is not None:
        columns = torch.where(mirror, columns.flip(1), columns)
    return Roll(rows, columns, rows.argsort(1), columns.argsort(1))


class _Permute(torch.autograd.Function):
    """Permute rows and columns per image; the gradient is the inverse permutation."""

    @staticmethod
    def forward(
        images: Tensor, rows: Tensor, columns: Tensor, rows_back: Tensor, columns_back: Tensor
    ) -> Tensor:
        del rows_back, columns_back
        return _take(images, rows, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(inputs[3], inputs[4])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows_back, columns_back = ctx.saved_tensors
        return _take(gradient, rows_back, columns_back), None, None, None, None


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`images[b, c, rows[b, h], columns[b, w]]`: (B, C, H, W), (B, h), (B, w) -> (B, C, h, w)."""
    batch, channels = images.shape[:2]
    b = torch.arange(batch, device=images.device).view(batch, 1, 1, 1)
    c = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    return images[b, c, rows[:, None, :, None], columns[:, None, None, :]]


def roll(images: Tensor, offsets: Roll) -> Tensor:
    """Shift and flip every image by its own offsets (seed section 2.1; jitter of the paper).

    Args:
        images: (B, C, H, W), any range.
        offsets: of `draw_roll`, on the device of `images`.
    Returns: (B, C, H, W); the backward pass applies the inverse permutation.
    """
    permuted: Tensor = _Permute.apply(images, *offsets)
    return permuted


def random_crop(images: Tensor, *, padding: int, flip: bool, generator: Generator | None) -> Tensor:
    """Pad with the mirrored border, crop back to size at a random place, mirror half of the images.

    The usual augmentation of 32-pixel classifiers; no gradient is needed through it.

    Args:
        images: (B, C, H, W), any dtype.
        padding: pixels on each side, less than H and W; 0 only flips.
    Returns: (B, C, H, W), same dtype.
    """
    batch, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.arange(width)
    if flip:
        mirror = torch.randint(0, 2, (batch, 1), generator=generator).bool()
        columns = torch.where(mirror, columns.flip(1), columns)
    # Mirror the indices at the border instead of copying the images into a padded buffer.
    rows = _reflect(rows - padding, height).to(images.device)
    columns = _reflect(columns - padding, width).to(images.device)
    return _take(images, rows, columns)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
