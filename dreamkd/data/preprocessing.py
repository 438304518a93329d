"""From an encoded picture to the uint8 image that a network sees before normalisation."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dreamkd.config import CROP_MODES, INTERPOLATIONS
from dreamkd.errors import ConfigError, DataError, nearest, said

if TYPE_CHECKING:
    from dreamkd.models import Card

#: Largest picture in pixels, as stored and as resized; larger ones are taken for bombs.
MAX_PIXELS = 2**26

#: What a picture file may hold. Never Pillow's whole list: it runs Ghostscript on EPS.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")

_WHITE = 2**16 - 1  # the largest grey value of 16 bits, which is 257 * 255

#: Formats that have no more than 16 bits, whatever integers Pillow reads them into.
_ALWAYS_16_BITS = ("PNG", "PPM")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The evaluation transform of timm and torchvision: resize, then crop the centre."""

    input_size: tuple[int, int, int]  # (C, H, W), C = 1 for grey
    interpolation: str = "bicubic"
    crop_pct: float = 1.0  # the crop's share of the resized short side, in (0, 1]
    crop_mode: str = "center"  # "squash": both sides are resized, whatever the picture's shape

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation '{self.interpolation}' is none of {', '.join(INTERPOLATIONS)}"
                + nearest(self.interpolation, INTERPOLATIONS)
            )
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct is in (0, 1], not {self.crop_pct}")
        if self.crop_mode not in CROP_MODES:
            raise ConfigError(f"crop_mode '{self.crop_mode}' is none of {', '.join(CROP_MODES)}")
        if self.input_size[0] not in (1, 3) or min(self.input_size) < 1:
            raise ConfigError(f"pictures are 1 or 3 channels, not an input of {self.input_size}")

    @classmethod
    def of(cls, card: Card) -> Preprocessing:
        """What the card of a network asks for."""
        return cls(
            input_size=card.input_size,
            interpolation=card.interpolation,
            crop_pct=card.crop_pct,
            crop_mode=card.crop_mode,
        )


def preprocess(picture: Image.Image, how: Preprocessing) -> Tensor:
    """Resize the short side, or both, to floor(size / crop_pct), crop the centre: uint8 (C, H, W).

    Equal to timm's and torchvision's transforms on Pillow pictures, to the bit, padding of too
    small ones with black included.

    Raises:
        DataError: the resized picture would be too large (an extreme aspect ratio), or its values
            have no known range.
    """
    channels, height, width = how.input_size
    picture = _in_mode(picture, "L" if channels == 1 else "RGB")
    size = _resized(picture.size, how)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{picture.width} x {picture.height} pixels resize to {size}: too large")
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling[how.interpolation.upper()])
    left, top = _start(picture.width, width), _start(picture.height, height)
    picture = picture.crop((left, top, left + width, top + height))  # black outside the picture
    pixels = np.array(picture).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_picture(data: bytes, *, name: str) -> Image.Image:
    """Decode a picture file completely.

    Raises:
        DataError: empty, damaged, none of `PICTURE_FORMATS`, or larger than `MAX_PIXELS`; the
            message begins with `name`.
    """
    if not data:
        raise DataError(f"{name} is empty")
    unreadable = f"{name} is not a readable {', '.join(PICTURE_FORMATS)}"
    try:
        picture = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
        pixels = picture.width * picture.height
        if pixels <= MAX_PIXELS:
            picture.load()
    except UnidentifiedImageError as error:  # it tells nothing but an address in memory
        raise DataError(unreadable) from error
    except Exception as error:  # Pillow raises a dozen types, and a Warning on bombs
        raise DataError(f"{unreadable} ({said(error)})") from error
    if pixels > MAX_PIXELS:
        raise DataError(f"{name} has {pixels} pixels; at most {MAX_PIXELS} are read")
    return picture


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _in_8_bits(picture)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns on the direct way, the colours are equal
    return picture.convert(mode)


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits in 8, rounded; Pillow's own way clips at 255.

    Integers of 32 bits, which TIFF has, are taken for 8 bits if none is above 255.

    Raises:
        DataError: values are no integers, or do not fit into 16 bits.
    """
    if picture.mode == "F":
        raise DataError("grey values are floating point, of no known range; store 8 or 16 bits")
    values = np.asarray(picture).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WHITE:
        raise DataError(f"grey values are {low} to {high}; legal is 0 to {_WHITE}")
    if picture.mode != "I" or picture.format in _ALWAYS_16_BITS or high > 255:
        values = (values + 128) // 257  # round(values / 257): a half never occurs
    return Image.fromarray(values.astype(np.uint8))


def _resized(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """(width, height) after resizing: torchvision's rule, and timm's for inputs not square."""
    width, height = size
    target_height, target_width = (math.floor(side / how.crop_pct) for side in how.input_size[1:])
    if how.crop_mode == "squash":
        return target_width, target_height
    if target_height == target_width:
        short, long = target_height, int(target_height * max(size) / min(size))
        return (short, long) if width <= height else (long, short)
    ratio = min(width / target_width, height / target_height)
    return round(width / ratio), round(height / ratio)


def _start(length: int, crop: int) -> int:
    """Where a centre crop starts; negative, as torchvision pads, if the picture is smaller."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
