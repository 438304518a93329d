"""Shards: WebDataset-layout tars of lossless PNG; the same batch gives the same bytes.

A shard is one batch: for every image `KEY.png`, `KEY.cls` (the label in decimal) and `KEY.json`
(its record, sorted keys), in that order, under constant ustar headers (mode 0644, no owner, time
0). This is the only file that knows the format. Reading treats a shard as hostile: nothing is
extracted, every size is bounded, every PNG chunk's CRC is checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamkd.errors import DataError
from dreamkd.files import sha256_file, write_atomically
from dreamkd.tars import BLOCK, Member, members

#: zlib level of the PNGs. Against level 6 it costs 2 % more bytes on noisy 224-px images, 3 % on
#: clean 32-px ones and 4 % on clean 224-px ones, and takes 0.93, 0.79 and 0.32 of the time.
COMPRESS_LEVEL = 1

#: Largest side of an image in pixels, so that a small file cannot decode into all of the memory.
MAX_SIDE = 4096

#: Members of one image in their order, and the largest legal size of each in bytes.
MEMBER_LIMITS = {"png": 2**26, "cls": 9, "json": 2**20}

_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
_PNG_MODES = {0: "L", 2: "RGB"}  # PNG colour type -> Pillow mode


@dataclass(frozen=True)
class Shard:
    """What a manifest line holds about one shard."""

    name: str
    count: int
    sha256: str  # of the file
    pixels_sha256: str  # of shape, labels and raw pixels, whatever encoder wrote the PNGs

    def to_json(self) -> dict[str, str | int]:
        """The fields of the shard's manifest line."""
        return {
            "shard": self.name,
            "count": self.count,
            "sha256": self.sha256,
            "pixels_sha256": self.pixels_sha256,
        }


@dataclass(frozen=True)
class Sample:
    """One image of a shard; `record` holds at least "key" and "label"."""

    key: str
    png: bytes
    label: int
    record: dict[str, Any]


def write(
    path: Path, images: Tensor, labels: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> Shard:
    """Write a batch as one shard, atomically; the same arguments give the same bytes.

    Args:
        path: the tar to write; its folder exists.
        images: uint8 (N, C, H, W), C = 1 (grey) or 3 (RGB).
        labels: N class indices.
        records: N mappings of JSON values; "key" names the image and is unique in the shard.
            "label" is added to what is written.
    Returns: the shard as its manifest line describes it.

    Raises:
        RunError: the file cannot be written.
        ValueError: the arguments are not of this form.
    """
    _check_batch(images, labels, records)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image, label, record in zip(images, labels, records, strict=True):
            content = (encode(image), b"%d" % label, _json({**record, "label": int(label)}))
            for suffix, data in zip(MEMBER_LIMITS, content, strict=True):
                member = tarfile.TarInfo(f"{record['key']}.{suffix}")  # mode 0644, all else 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    data = buffer.getvalue()
    write_atomically(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return Shard(path.name, len(images), digest, pixels_sha256(images, labels))


def read(path: Path) -> Iterator[Sample]:
    """Yield the samples of a shard in file order, in memory, one at a time.

    Raises:
        DataError: the file is missing, cut short, damaged, or holds anything `write` does not
            write; the message names the file and the member.
    """
    found = list(members(path))
    if not found:
        raise DataError(f"{path.name} holds no images")
    if len(found) % len(MEMBER_LIMITS):
        raise DataError(f"{path.name}: {found[-1].name!r} belongs to an image that is incomplete")
    keys: set[str] = set()
    with open(path, "rb") as file:
        _check_layout(file, path.name, found)
        for first in range(0, len(found), len(MEMBER_LIMITS)):
            sample = _sample(file, path.name, found[first : first + len(MEMBER_LIMITS)])
            if sample.key in keys:
                raise DataError(f"{path.name} holds {sample.key!r} twice")
            keys.add(sample.key)
            yield sample


def verify(path: Path, shard: Shard) -> None:
    """Check a shard's file against its manifest line.

    Raises:
        DataError: the file is missing, or its bytes are not those recorded; the message says what
            is damaged, or that the pixels are intact and only the encoding differs.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing although the manifest lists it")
    if sha256_file(path) == shard.sha256:
        return
    samples = list(read(path))
    images = [decode(sample.png, name=f"{path.name}: {sample.key}.png") for sample in samples]
    same = len({image.shape for image in images}) == 1 and shard.pixels_sha256 == pixels_sha256(
        torch.stack(images), [sample.label for sample in samples]
    )
    what = (
        "its pixels and labels are intact, so another PNG encoder or another record wrote it"
        if same
        else "its images or labels are others"
    )
    raise DataError(
        f"{path.name} is not the file that the manifest recorded: {what}; "
        "delete it and run the command that made it again"
    )


def read_manifest(path: Path) -> dict[str, Shard]:
    """The shards that a manifest lists, by file name; a torn last line counts as not written.

    Raises:
        DataError: the manifest cannot be read or a line is not a shard's.
    """
    try:
        complete = path.read_bytes().rpartition(b"\n")[0]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    shards = {}
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            entry = json.loads(line)
            shard = Shard(
                entry["shard"], int(entry["count"]), entry["sha256"], entry["pixels_sha256"]
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path}: line {number} does not describe a shard") from error
        shards[shard.name] = shard
    return shards


def encode(image: Tensor) -> bytes:
    """PNG of one uint8 image (C, H, W), grey for C = 1 and RGB for C = 3."""
    pixels = image.permute(1, 2, 0).squeeze(2) if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels.cpu().numpy()))
    picture.save(buffer, "PNG", compress_level=COMPRESS_LEVEL)
    return buffer.getvalue()


def decode(png: bytes, *, name: str = "image") -> Tensor:
    """Pixels of a shard's PNG: uint8 (C, H, W), C = 1 or 3.

    Raises:
        DataError: it is not an intact 8-bit grey or RGB PNG of at most `MAX_SIDE` pixels a side;
            the message begins with `name`.
    """
    mode = _check_png(png, name)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            pixels = np.array(picture)
    except Exception as error:  # Pillow raises a dozen types on a stream that does not decode
        raise DataError(f"{name} is damaged: {error}") from error
    channels = Image.getmodebands(mode)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def pixels_sha256(images: Tensor, labels: Sequence[int]) -> str:
    """SHA-256 over the shape, the labels and the raw pixels of uint8 images (N, C, H, W)."""
    digest = hashlib.sha256(json.dumps([list(images.shape), [int(y) for y in labels]]).encode())
    digest.update(images.cpu().contiguous().view(-1).numpy().data)
    return digest.hexdigest()


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()


def _check_batch(
    images: Tensor, labels: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> None:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"images are uint8 (N, 1 or 3, H, W), not {images.dtype} {shape}")
    if min(shape) < 1 or max(shape[2:]) > MAX_SIDE:
        raise ValueError(f"a shard holds images of 1 to {MAX_SIDE} pixels a side, not {shape}")
    keys = [record["key"] for record in records]
    if not len(images) == len(labels) == len(set(keys)) == len(keys):
        raise ValueError("every image needs one label and one record with a key of its own")
    if wrong := [key for key in keys if not _KEY.fullmatch(key)]:
        raise ValueError(f"keys are letters, digits, - and _, at most 90, not {wrong[0]!r}")
    if min(labels) < 0 or max(labels) >= 10 ** MEMBER_LIMITS["cls"]:
        raise ValueError(f"labels are class indices, not {min(labels)}..{max(labels)}")


def _check_layout(file: BinaryIO, name: str, found: Sequence[Member]) -> None:
    """Nothing lies between the members (folders, extended headers) or after the end."""
    position = BLOCK
    for member in found:
        if member.offset != position:
            raise DataError(f"{name}: something foreign lies before {member.name!r}")
        position = member.end + BLOCK
    file.seek(position - BLOCK)
    while rest := file.read(2**20):
        if rest.count(0) != len(rest):
            raise DataError(f"{name}: something foreign lies after the last member")


def _sample(file: BinaryIO, name: str, group: Sequence[Member]) -> Sample:
    key = group[0].name.removesuffix(".png")
    if not _KEY.fullmatch(key):
        raise DataError(f"{name}: {group[0].name!r} is not KEY.png of letters, digits, - and _")
    content = []
    for member, (suffix, limit) in zip(group, MEMBER_LIMITS.items(), strict=True):
        if member.name != f"{key}.{suffix}":
            raise DataError(f"{name}: {member.name!r} lies where {key}.{suffix} belongs")
        if member.size > limit:
            raise DataError(f"{name}: {member.name} has {member.size} bytes, at most {limit}")
        file.seek(member.offset)
        content.append(file.read(member.size))
    png, label, text = content
    _check_png(png, f"{name}: {key}.png")
    if not re.fullmatch(rb"[0-9]+", label):
        raise DataError(f"{name}: {key}.cls is {label!r}, not a class index")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: {key}.json is not JSON ({error})") from error
    if not isinstance(record, dict) or record.get("key") != key:
        raise DataError(f"{name}: {key}.json is the record of another image")
    if record.get("label") != int(label):
        raise DataError(f"{name}: {key}.cls says {int(label)}, {key}.json {record.get('label')!r}")
    return Sample(key, png, int(label), record)


def _check_png(png: bytes, name: str) -> str:
    """Check every chunk of a PNG (Pillow skips the CRCs of pixels); return the Pillow mode."""
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
