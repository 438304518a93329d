"""Per-image augmentation of batches: every image of a batch has its own draw.

Offsets are drawn outside the graph from an explicit generator; applying them is a plain function of
images and offsets, with a backward pass that gathers (never scatters), so that it is deterministic
on every device and fuses into the compiled step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

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


class Resampling(NamedTuple):
    """Weights of a separable resize: `rows` (H_out, H_in) and `columns` (W_out, W_in).

    With a leading batch dimension on both, every image has weights of its own.
    """

    rows: Tensor
    columns: Tensor


def resample(images: Tensor, weights: Resampling) -> Tensor:
    """Resize by two matrix products, whose backward pass is deterministic on every device.

        y[b, c] = rows x[b, c] columns^T

    Args: images: (B, C, H_in, W_in), float.
    Returns: (B, C, H_out, W_out).
    """
    rows, columns = weights
    if rows.ndim == 3:
        rows, columns = rows[:, None], columns[:, None]
    return rows @ images @ columns.transpose(-1, -2)


def resampling(before: tuple[int, int], after: tuple[int, int], *, device: str) -> Resampling:
    """Bilinear weights from size (H, W) `before` to `after`; antialiased where it shrinks."""
    rows, columns = (_triangle(m, n) for m, n in zip(before, after, strict=True))
    return Resampling(rows.to(device), columns.to(device))


def _triangle(before: int, after: int) -> Tensor:
    """(after, before): a triangle around the source of each output, wider where it shrinks."""
    ratio = before / after
    centre = (torch.arange(after) + 0.5) * ratio - 0.5
    distance = (torch.arange(before) - centre[:, None]).abs() / max(1.0, ratio)
    weights = (1 - distance).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


def draw_crop(
    size: tuple[int, int, int], *, smallest: float, generator: Generator | None
) -> Resampling:
    """Draw a random resized crop per image: area smallest..1, aspect 3/4..4/3.

    Args:
        size: (batch, height, width), before and after.
        smallest: least share of the area, in (0, 1]; at 1 the crop is the whole image.
        generator: source of randomness (CPU).
    Returns: weights on the CPU, one pair per image.
    """
    batch, height, width = size
    draws = torch.rand(4, batch, 1, generator=generator)
    area = smallest + (1 - smallest) * draws[0]
    widest = (-area.log()).clamp_max(math.log(4 / 3))  # within the image on both axes
    aspect = torch.exp(widest * (2 * draws[1] - 1))
    sides = (area / aspect).sqrt().clamp_max(1), (area * aspect).sqrt().clamp_max(1)
    rows, columns = (
        _window(length, side, place)
        for length, side, place in zip((height, width), sides, draws[2:], strict=True)
    )
    return Resampling(rows, columns)


def _window(length: int, side: Tensor, place: Tensor) -> Tensor:
    """Bilinear weights (B, length, length) of the window of share `side` (B, 1) at `place`."""
    start = (1 - side) * place * length
    centre = start + (torch.arange(length) + 0.5) * side - 0.5
    centre = centre.clamp(0, length - 1)
    return (1 - (torch.arange(length) - centre[..., None]).abs()).clamp_min(0)


def smallest_crop(share: float, *, end: float) -> float:
    """The crop curriculum of CDA (Yin & Shen 2024): smallest area 1 at first, `end` at last.

        end + (1 - end) (1 + cos(pi share)) / 2

    Args: share: of all steps that are done, in [0, 1].
    """
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


class View(NamedTuple):
    """How the network sees each image in one step: shifted and flipped, then cropped."""

    roll: Roll
    crop: Resampling | None

    def to(self, device: str) -> Self:
        """The draws on the device of the images."""
        roll = Roll(*(index.to(device, non_blocking=True) for index in self.roll))
        crop = self.crop and Resampling(*(w.to(device, non_blocking=True) for w in self.crop))
        return type(self)(roll, crop)

    def part(self, part: slice) -> Self:
        """The draws of some images of the batch."""
        roll = Roll(*(index[part] for index in self.roll))
        crop = self.crop and Resampling(*(weights[part] for weights in self.crop))
        return type(self)(roll, crop)


def draw_view(
    size: tuple[int, int, int],
    *,
    shift: int,
    flip: bool,
    smallest: float,
    generator: Generator | None,
) -> View:
    """Draw a view of each image; arguments as of `draw_roll` and `draw_crop`."""
    roll = draw_roll(size, shift=shift, flip=flip, generator=generator)
    crop = draw_crop(size, smallest=smallest, generator=generator) if smallest < 1 else None
    return View(roll, crop)


def see(images: Tensor, view: View) -> Tensor:
    """The images (B, C, H, W) as `view` shows them to the network."""
    seen = roll(images, view.roll)
    return seen if view.crop is None else resample(seen, view.crop)


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


def cut_mix(images: Tensor, *, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Paste a box of another image of the batch into each (CutMix, Yun et al. 2019).

    Its share of the area is uniform in [0, 1], its centre anywhere, and what lies outside is lost.
    Distillation needs no more: it asks the teacher about what the student sees.

    Args:
        images: (B, C, H, W), any dtype.
    Returns: images of the same shape and dtype; the index (B,) of the other image of each; its
        share (B,) of the area.
    """
    batch, _, height, width = images.shape
    others = torch.randperm(batch, generator=generator)
    share, down, right = torch.rand((3, batch, 1), generator=generator)
    side = share.sqrt() / 2
    rows, columns = (
        ((torch.arange(length) + 0.5) / length - centre).abs() < side
        for length, centre in ((height, down), (width, right))
    )
    box = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    others = others.to(images.device)
    return torch.where(box, images[others], images), others, box.float().mean((1, 2, 3))


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
