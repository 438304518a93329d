"""Per-image augmentation of batches: every image of a batch has its own draw.

A draw is a few numbers an image, made on the CPU from an explicit generator and then moved; what
follows from it is computed where the images are, in the compiled step. Backward passes gather and
never scatter, so that they are deterministic on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Generator, Tensor

from dreamkd.moments import materialised
from dreamkd.resampling import Resampling, resample


class Roll(NamedTuple):
    """A circular shift and flip per image, each int64 (B,)."""

    down: Tensor  # rows
    right: Tensor  # columns, before the flip
    mirrored: Tensor  # 0 or 1


def draw_roll(batch: int, *, shift: int, flip: bool, generator: Generator | None) -> Roll:
    """Draw a shift of -shift..shift pixels on both axes and a fair flip, one per image.

    Args:
        shift: largest shift in pixels; 0 for none.
        flip: whether half of the images are mirrored left to right.
        generator: source of randomness (CPU); the draw does not depend on the device of the images.
    """
    down, right = torch.randint(-shift, shift + 1, (2, batch, 1), generator=generator)[..., 0]
    if flip:
        mirrored = torch.randint(0, 2, (batch, 1), generator=generator)[:, 0]
    else:
        mirrored = torch.zeros(batch, dtype=torch.int64)
    return Roll(down, right, mirrored)


class _Permute(torch.autograd.Function):
    """Shift and flip; the gradient goes the way back."""

    @staticmethod
    def forward(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
        return _take(images, *_wrapped(images, Roll(down, right, mirrored)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        down, right, mirrored = ctx.saved_tensors
        # What is mirrored after its shift is its own inverse.
        right = torch.where(mirrored > 0, right, -right)
        back = _wrapped(gradient, Roll(-down, right, mirrored))
        return _take(gradient, *back), None, None, None


def _sources(images: Tensor, offsets: Roll) -> tuple[Tensor, Tensor]:
    """The row (B, H) and column (B, W) that land in each place; some lie beyond the border."""
    height, width = images.shape[2:]
    down, right, mirrored = (draw[:, None] for draw in offsets)
    h, w = (torch.arange(n, device=images.device) for n in (height, width))
    return h - down, torch.where(mirrored > 0, width - 1 - w, w) - right


def _wrapped(images: Tensor, offsets: Roll) -> tuple[Tensor, Tensor]:
    """`_sources`, those beyond the border taken from the other side."""
    rows, columns = _sources(images, offsets)
    return materialised(rows % images.shape[2]), materialised(columns % images.shape[3])


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`images[b, c, rows[b, h], columns[b, w]]`: (B, C, H, W), (B, h), (B, w) -> (B, C, h, w)."""
    batch, channels = images.shape[:2]
    b = torch.arange(batch, device=images.device).view(batch, 1, 1, 1)
    c = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    return images[b, c, rows[:, None, :, None], columns[:, None, None, :]]


def roll(images: Tensor, offsets: Roll) -> Tensor:
    """Shift and flip every image by its own offsets (Yin et al. 2020).

    Args:
        images: (B, C, H, W), any range.
        offsets: of `draw_roll`, on the device of `images`.
    Returns: (B, C, H, W); the backward pass applies the inverse permutation.
    """
    permuted: Tensor = _Permute.apply(images, *offsets)
    return permuted


def _wrap(images: Tensor, offsets: Roll, black: Tensor) -> Tensor:
    del black
    return roll(images, offsets)


def _black(images: Tensor, offsets: Roll, black: Tensor) -> Tensor:
    rows, columns = _sources(images, offsets)
    rows = (rows >= 0) & (rows < images.shape[2])
    columns = (columns >= 0) & (columns < images.shape[3])
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, roll(images, offsets), black.to(images.dtype))


def _mirror(images: Tensor, offsets: Roll, black: Tensor) -> Tensor:
    """By matrices of zeros and ones, in whose backward pass a pixel collects what showed it."""
    del black
    weights = [
        (_reflect(source, length)[..., None] == torch.arange(length, device=source.device))
        for source, length in zip(_sources(images, offsets), images.shape[2:], strict=True)
    ]
    rows, columns = (weight[:, None].to(images.dtype) for weight in weights)
    return resample(images, Resampling(rows, columns))


#: What a shift brings in at the border that it moves away from: the other side (Yin et al. 2020);
#: or what training augmentations bring in, black or the image mirrored.
BORDERS: dict[str, Callable[[Tensor, Roll, Tensor], Tensor]] = {
    "wrap": _wrap,
    "black": _black,
    "mirror": _mirror,
}


class Window(NamedTuple):
    """A rectangle per image, in shares of its sides, each float (B,)."""

    rows: Tensor  # its height
    columns: Tensor  # its width
    top: Tensor  # where it lies within what is left: 0 at one border, 1 at the other
    left: Tensor


def draw_crop(batch: int, *, smallest: float, generator: Generator | None) -> Window:
    """Draw a random resized crop per image: area smallest..1, aspect 3/4..4/3.

    Args:
        smallest: least share of the area, in (0, 1]; at 1 the crop is the whole image.
        generator: source of randomness (CPU).
    """
    draws = torch.rand(4, batch, 1, generator=generator)[..., 0]
    area = smallest + (1 - smallest) * draws[0]
    widest = (-area.log()).clamp_max(math.log(4 / 3))  # within the image on both axes
    aspect = torch.exp(widest * (2 * draws[1] - 1))
    rows, columns = (area / aspect).sqrt().clamp_max(1), (area * aspect).sqrt().clamp_max(1)
    return Window(rows, columns, draws[2], draws[3])


def crop(images: Tensor, window: Window) -> Tensor:
    """Resize the window of each image (B, C, H, W) to all of it, bilinearly."""
    height, width = images.shape[2:]
    rows = _window(height, window.rows[:, None], window.top[:, None])
    columns = _window(width, window.columns[:, None], window.left[:, None])
    return resample(images, Resampling(rows[:, None], columns[:, None]))


def _window(length: int, side: Tensor, place: Tensor) -> Tensor:
    """Bilinear weights (B, length, length) of the window of share `side` (B, 1) at `place`."""
    index = torch.arange(length, device=side.device)
    centre = (1 - side) * place * length + (index + 0.5) * side - 0.5
    centre = centre.clamp(0, length - 1)
    return (1 - (index - centre[..., None]).abs()).clamp_min(0)


def smallest_crop(share: float, *, end: float) -> float:
    """The crop curriculum of CDA (Yin & Shen 2024): smallest area 1 at first, `end` at last.

        end + (1 - end) (1 + cos(pi share)) / 2

    Args: share: of all steps that are done, in [0, 1].
    """
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


class View(NamedTuple):
    """How the network sees each image in one step: shifted and flipped, then cropped."""

    roll: Roll
    crop: Window | None

    def to(self, device: str) -> Self:
        """The draws on the device of the images: one small copy each."""
        return type(self)(moved(self.roll, device), self.crop and moved(self.crop, device))

    def part(self, part: slice) -> Self:
        """The draws of some images of the batch."""
        return type(self)(part_of(self.roll, part), self.crop and part_of(self.crop, part))


def draw_view(
    batch: int, *, shift: int, flip: bool, smallest: float | None, generator: Generator | None
) -> View:
    """Draw a view of each image; arguments as of `draw_roll` and `draw_crop`, None for no crop."""
    roll = draw_roll(batch, shift=shift, flip=flip, generator=generator)
    if smallest is None:
        return View(roll, None)
    return View(roll, draw_crop(batch, smallest=smallest, generator=generator))


def see(images: Tensor, view: View, *, border: str = "wrap", black: Tensor) -> Tensor:
    """The images (B, C, H, W) as `view` shows them to the network.

    Args:
        border: one of `BORDERS`, what a shift brings in.
        black: (C, 1, 1), in the units of the images.
    """
    seen = BORDERS[border](images, view.roll, black)
    return seen if view.crop is None else crop(seen, view.crop)


def random_crop(images: Tensor, offsets: Roll) -> Tensor:
    """Pad with the mirrored border, crop back to size at a random place, mirror half of the images.

    The usual augmentation of 32-pixel classifiers; no gradient is needed through it.

    Args:
        images: (B, C, H, W), any dtype.
        offsets: of `draw_roll`, whose shift is the padding, less than H and W; on the CPU.
    Returns: (B, C, H, W), same dtype.
    """
    down, right, mirrored = moved(offsets, images.device)
    rows, columns = _sources(images, Roll(-down, -right, mirrored))
    # Mirror the indices at the border instead of copying the images into a padded buffer.
    return _take(images, _reflect(rows, images.shape[2]), _reflect(columns, images.shape[3]))


class Box(NamedTuple):
    """A rectangle of the shape of each image, in shares of its sides, each float (B,)."""

    area: Tensor  # of the image, where it lies within
    down: Tensor  # its centre
    right: Tensor


def draw_box(batch: int, *, generator: Generator | None) -> Box:
    """Draw a box per image: its share of the area uniform in [0, 1], its centre anywhere."""
    return Box(*torch.rand((3, batch, 1), generator=generator)[..., 0])


def cut_mix(images: Tensor, others: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Paste a box of another image into each (CutMix, Yun et al. 2019).

    What of the box lies outside is lost. Distillation needs no more: it asks the teacher about what
    the student sees.

    Args:
        images: (B, C, H, W), any dtype.
        others: those that the boxes are cut from, of the same shape.
        box: of `draw_box`, on the CPU.
    Returns: images of the same shape and dtype; the share (B,) of its area that is of the other.
    """
    height, width = images.shape[2:]
    area, down, right = (draw[:, None] for draw in moved(box, images.device))
    side = area.sqrt() / 2
    rows, columns = (
        ((torch.arange(length, device=images.device) + 0.5) / length - centre).abs() < side
        for length, centre in ((height, down), (width, right))
    )
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, others, images), inside.float().mean((1, 2, 3))


Draws = TypeVar("Draws", Roll, Window, Box)


def part_of(draws: Draws, part: slice | Tensor) -> Draws:
    """The draws of some images of a batch."""
    return type(draws)(*(draw[part] for draw in draws))


def moved(draws: Draws, device: torch.device | str) -> Draws:
    """The draws on another device: one small copy, for which the host does not wait."""
    return type(draws)(*torch.stack(draws).to(device, non_blocking=True))


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond the border, mirrored there as often as it takes; the border counts once."""
    index = index % max(1, 2 * (size - 1))
    return torch.where(index >= size, 2 * (size - 1) - index, index)
