"""Shards: WebDataset-layout tars of lossless PNG; the same batch gives the same bytes.

A shard is one batch: for every image `KEY.png`, `KEY.cls` (the label in decimal) and `KEY.json`
(its record, sorted keys), in that order, under constant ustar headers (mode 0644, no owner, time
0). Only this file knows what is in a shard. Reading treats it as hostile: nothing is extracted,
every size is bounded, every PNG chunk's CRC is checked.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from dreamkd import manifest
from dreamkd.errors import DataError
from dreamkd.files import make_folders, remove, sha256_file, write_atomically
from dreamkd.manifest import Shard
from dreamkd.samples import (
    KEY,
    LABEL_DIGITS,
    PNG_LIMIT,
    RECORD_LIMIT,
    Sample,
    check_batch,
    check_png,
    difference,
    dump_record,
    encode,
    parse_record,
    pixels_sha256,
)
from dreamkd.tars import BLOCK, Member, members

#: Members of one image in their order, and the largest legal size of each in bytes.
MEMBER_LIMITS = {"png": PNG_LIMIT, "cls": LABEL_DIGITS, "json": RECORD_LIMIT}


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
    check_batch(images, labels, records)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image, label, record in zip(images, labels, records, strict=True):
            content = (encode(image), b"%d" % label, dump_record(record, label=int(label)))
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
        DataError: the file is missing, cannot be read, or its bytes are not those recorded; the
            message says what is damaged, or that the pixels are intact and only the encoding
            differs.
    """
    if sha256_file(path) == shard.sha256:
        return
    raise difference(path.name, read(path), shard)


class Tars:
    """`--format shards`: batch k of a run is the tar `shards/shard-NNNNNN.tar`."""

    names = re.compile(r"shard-([0-9]{6,9})\.tar")

    def __init__(self, run: Path) -> None:
        self.folder = run / manifest.SHARDS

    def prepare(self) -> None:
        """Make the folder.

        Raises: RunError: it cannot be made.
        """
        make_folders(self.folder)

    def path(self, k: int) -> Path:
        """The tar of batch `k`."""
        return self.folder / f"shard-{k:06d}.tar"

    def write(
        self, k: int, images: Tensor, labels: Sequence[int], records: Sequence[Mapping[str, Any]]
    ) -> Shard:
        """`write` batch `k`."""
        return write(self.path(k), images, labels, records)

    def verify(self, k: int, shard: Shard) -> None:
        """`verify` batch `k` against its manifest line."""
        verify(self.path(k), shard)

    def read(self, k: int) -> Iterator[Sample]:
        """`read` batch `k`."""
        return read(self.path(k))

    def remove(self, k: int) -> None:
        """Remove the tar of batch `k`."""
        remove(self.path(k))


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
    if not KEY.fullmatch(key):
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
    check_png(png, name=f"{name}: {key}.png")
    if not re.fullmatch(rb"[0-9]+", label):
        raise DataError(f"{name}: {key}.cls is {label!r}, not a class index")
    record = parse_record(text, name=f"{name}: {key}.json")
    if record.get("key") != key:
        raise DataError(f"{name}: {key}.json is the record of another image")
    if record.get("label") != int(label):
        raise DataError(f"{name}: {key}.cls says {int(label)}, {key}.json {record.get('label')!r}")
    return Sample(key, png, int(label), record)
