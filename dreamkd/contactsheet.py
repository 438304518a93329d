"""Many images on one page, to look at."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from dreamkd.files import write_atomically

#: Small images are enlarged to about this many pixels a side, by a whole factor.
_SHOWN_SIDE = 64

#: Larger images are shrunk to at most this many, so that a page of a hundred stays a small file.
_LARGEST_SIDE = 224


def tile(image: np.ndarray) -> np.ndarray:
    """A uint8 image (C, H, W) as a page shows it: averaged over squares of pixels if it is large.

    All that `write` needs of an image, in little memory.
    """
    factor = math.ceil(max(image.shape[1:]) / _LARGEST_SIDE)
    if factor == 1:
        return image
    planes = [Image.fromarray(np.ascontiguousarray(plane)).reduce(factor) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


def write(path: Path, images: np.ndarray, *, columns: int) -> None:
    """Write uint8 `images` (N, C, H, W), or their tiles, as one PNG, row by row, a border between.

    Raises: RunError: the file cannot be written.
    """
    images = np.stack([tile(image) for image in images])
    _, channels, height, width = images.shape
    factor = max(1, _SHOWN_SIDE // max(height, width))
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    height, width = height * factor, width * factor
    gap = 2
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    page = np.full(shape, 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top = number // columns * (height + gap)
        left = number % columns * (width + gap)
        page[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(page.squeeze(2) if channels == 1 else page).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
