"""What the formats of a run's images share: samples, and lossless PNG.

The same image gives the same PNG. Reading treats files as hostile: every size is bounded, every PNG
chunk's CRC is checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamkd.errors import DataError
from dreamkd.manifest import Shard

#: zlib level of the PNGs. Against level 6 it costs 2 % more bytes on noisy 224-px images, 3 % on
#: clean 32-px ones and 4 % on clean 224-px ones, and takes 0.93, 0.79 and 0.32 of the time.
COMPRESS_LEVEL = 1

#: Largest side of an image in pixels, so that a small file cannot decode into all of the memory.
MAX_SIDE = 4096

#: Largest PNG and largest record in bytes, and the most digits of a label.
PNG_LIMIT, RECORD_LIMIT, LABEL_DIGITS = 2**26, 2**20, 9

#: What names an image.
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")

_PNG_MODES = {0: "L", 2: "RGB"}  # PNG colour type -> Pillow mode


#: Bytes of an image's record, label, and what the file system or tar rounds up, at most.
_OVERHEAD = 8192


def room(count: int, shape: tuple[int, int, int]) -> int:
    """Bytes that `count` images (C, H, W) take on disk, at most: noise does not compress."""
    channels, height, width = shape
    return count * (height * (channels * width + 1) * 1001 // 1000 + _OVERHEAD)


@dataclass(frozen=True)
class Sample:
    """One image of a batch; `record` holds at least "key" and "label"."""

    key: str
    png: bytes
    label: int
    record: dict[str, Any]


def check_batch(
    images: Tensor, labels: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> None:
    """Check that a batch can be stored.

    Raises:
        ValueError: images are not uint8 (N, 1 or 3, H, W), or labels or records do not fit them.
    """
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"images are uint8 (N, 1 or 3, H, W), not {images.dtype} {shape}")
    if min(shape) < 1 or max(shape[2:]) > MAX_SIDE:
        raise ValueError(f"a shard holds images of 1 to {MAX_SIDE} pixels a side, not {shape}")
    keys = [record["key"] for record in records]
    if not len(images) == len(labels) == len(set(keys)) == len(keys):
        raise ValueError("every image needs one label and one record with a key of its own")
    if wrong := [key for key in keys if not KEY.fullmatch(key)]:
        raise ValueError(f"keys are letters, digits, - and _, at most 90, not {wrong[0]!r}")
    if min(labels) < 0 or max(labels) >= 10**LABEL_DIGITS:
        raise ValueError(f"labels are class indices, not {min(labels)}..{max(labels)}")


def dump_record(record: Mapping[str, Any], **more: Any) -> bytes:
    """A record and more about the image as one line of JSON, keys sorted."""
    return json.dumps({**record, **more}, sort_keys=True, allow_nan=False).encode()


def parse_record(text: bytes, *, name: str) -> dict[str, Any]:
    """The record that `text` holds.

    Raises:
        DataError: it holds none; the message begins with `name`.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{name} is no record of an image")
    return record


def difference(name: str, samples: Iterable[Sample], shard: Shard) -> DataError:
    """The error that says how a batch, read back from `name`, differs from its manifest line.

    Raises:
        DataError: a picture is damaged.
    """
    images, labels = [], []
    for sample in samples:
        images.append(decode(sample.png, name=f"{name}: {sample.key}.png"))
        labels.append(sample.label)
    same = len({image.shape for image in images}) == 1 and shard.pixels_sha256 == pixels_sha256(
        torch.stack(images), labels
    )
    what = (
        "its pixels and labels are intact, so another PNG encoder or another record wrote it"
        if same
        else "its images or labels are others"
    )
    return DataError(
        f"{name} is not the file that the manifest recorded: {what}; "
        "delete it and run the command that made it again"
    )


def encode(image: Tensor) -> bytes:
    """PNG of one uint8 image (C, H, W), grey for C = 1 and RGB for C = 3."""
    pixels = image.permute(1, 2, 0).squeeze(2) if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()))
    picture.save(buffer, "PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def decode(png: bytes, *, name: str = "image") -> Tensor:
    """Pixels of a stored PNG: uint8 (C, H, W), C = 1 or 3.

    Raises:
        DataError: it is not an intact 8-bit grey or RGB PNG of at most `MAX_SIDE` pixels a side;
            the message begins with `name`.
    """
    mode = check_png(png, name=name)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            pixels = np.array(picture)
    except Exception as error:  # Pillow raises a dozen types on a stream that does not decode
        raise DataError(f"{name} is damaged: {error}") from error
    channels = Image.getmodebands(mode)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def joined(images: Sequence[Tensor]) -> Tensor:
    """uint8 images (C, H, W) of one shape as one contiguous (N, C, H, W).

    By numpy: torch would start threads of its own beside those of the optimisation.
    """
    whole = np.empty((len(images), *images[0].shape), dtype=np.uint8)
    np.stack([image.numpy() for image in images], out=whole)
    return torch.from_numpy(whole)


def pixels_sha256(images: Tensor, labels: Sequence[int]) -> str:
    """SHA-256 over the shape, the labels and the raw pixels of uint8 images (N, C, H, W)."""
    digest = hashlib.sha256(json.dumps([list(images.shape), [int(y) for y in labels]]).encode())
    # numpy copies on one thread: torch would start its own beside those of the optimisation
    digest.update(np.ascontiguousarray(images.cpu().numpy()).data)
    return digest.hexdigest()


def check_png(png: bytes, *, name: str) -> str:
    """Check every chunk of a PNG (Pillow skips the CRCs of pixels); return the Pillow mode.

    Raises:
        DataError: damaged, or no plain 8-bit grey or RGB PNG; the message begins with `name`.
    """
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError(f"{name} is not a PNG")
    position, kinds = 8, []
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png[position : position + 8].ljust(8, b"\0"))
        end = position + 8 + length
        if png[end : end + 4] != zlib.crc32(png[position + 4 : end]).to_bytes(4, "big"):
            raise DataError(f"{name} is damaged: wrong checksum at byte {position}")
        kinds.append(kind)
        position = end + 4
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or {*kinds[1:-1]} != {b"IDAT"}:
        raise DataError(f"{name} is not a plain PNG: chunks are IHDR, IDAT, IEND")
    width, height, depth, colour = struct.unpack_from(">IIBB", png, 16)
    if depth != 8 or colour not in _PNG_MODES:
        raise DataError(f"{name} is not 8-bit grey or RGB")
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise DataError(f"{name} is {width} x {height} pixels; 1 to {MAX_SIDE} a side are legal")
    return _PNG_MODES[colour]
