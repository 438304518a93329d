"""The manifest of a run, and where it lists what: one line per finished batch, appended durably.

A line torn by a crash counts as not written; any other damage is refused, since everything that a
run trusts follows from its manifest.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from dreamkd.errors import DataError, RunError, said
from dreamkd.files import sync_folder, write_atomically
from dreamkd.identity import RESOLVED

#: The manifest's name in a run folder.
FILE = "manifest.jsonl"

#: Folders of a run: its shards; or its class folders, and what its batches are.
SHARDS, IMAGES, RECORDS = "shards", "images", "records"

_TAIL = 4096

_HASH = re.compile(r"[0-9a-f]{64}")


def run_of(path: Path) -> Path:
    """The folder of the run that a path names: itself, that of its images, or a tar in either."""
    folder = (path.parent if path.is_file() else path).absolute()
    inside = folder.name in (SHARDS, IMAGES) and not (folder / RESOLVED).exists()
    return folder.parent if inside else folder


@dataclass(frozen=True)
class Shard:
    """What a manifest line holds about one shard: one batch as a run keeps it."""

    name: str
    count: int
    sha256: str  # of the file `name`, which vouches for all of the batch
    pixels_sha256: str  # of shape, labels and raw pixels, whatever encoder wrote the PNGs

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self:
        """As a manifest line describes it."""
        return cls(line["shard"], line["count"], line["sha256"], line["pixels_sha256"])

    def to_json(self) -> dict[str, str | int]:
        """The fields of the shard's manifest line."""
        return {
            "shard": self.name,
            "count": self.count,
            "sha256": self.sha256,
            "pixels_sha256": self.pixels_sha256,
        }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line, durably; what it describes is already in place.

    Several processes may: each has the file to itself meanwhile.

    Raises: RunError: it cannot be written.
    """
    data = _dump(line)
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(_end(file))  # over a line torn by a crash
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {said(error)}") from error


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole manifest, atomically; nobody appends meanwhile.

    Raises: RunError: it cannot be written; the old one is intact.
    """
    write_atomically(path, b"".join(map(_dump, lines)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines, each of which describes a shard, and possibly its batch.

    Raises: DataError: the manifest cannot be read, or a line is not a shard's.
    """
    try:
        complete = _complete(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {said(error)}") from error
    lines = []
    for number, text in enumerate(complete.splitlines(), start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not _describes_a_shard(line):
            raise DataError(f"{path}: line {number} does not describe a shard")
        lines.append(line)
    return lines


def read(path: Path) -> dict[str, Shard]:
    """The shards by file name; the last line about one counts.

    Raises: DataError: as `read_lines`.
    """
    return {shard.name: shard for shard in map(Shard.of, read_lines(path))}


def numbered(listed: Mapping[str, Shard], names: re.Pattern[str]) -> list[tuple[int, Shard]]:
    """The shards of a manifest with the numbers of their batches, in order.

    Raises:
        DataError: one is not called as `names`, whose group is the number, wants it.
    """
    found = []
    for name, shard in listed.items():
        match = names.fullmatch(name)
        if match is None:
            raise DataError(f"the manifest lists {name!r} beside the batches of a run")
        found.append((int(match[1]), shard))
    return sorted(found, key=lambda pair: pair[0])


def _dump(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, sort_keys=True, allow_nan=False) + "\n").encode()


def _complete(path: Path) -> bytes:
    """The whole lines of a file."""
    head, end, _ = path.read_bytes().rpartition(b"\n")
    return head + end


def _end(file: BinaryIO) -> int:
    """Where the whole lines of a file end, read from behind: a manifest may be long."""
    position = file.seek(0, os.SEEK_END)
    while position:
        size = min(_TAIL, position)
        position = file.seek(position - size)
        newline = file.read(size).rfind(b"\n")
        if newline >= 0:
            return position + newline + 1
    return 0


def _describes_a_shard(line: Mapping[str, Any]) -> bool:
    hashes = (line.get("sha256"), line.get("pixels_sha256"))
    counts = [line.get("count"), *(line[name] for name in ("batch", "start") if name in line)]
    return (
        isinstance(line.get("shard"), str)
        and all(isinstance(value, str) and _HASH.fullmatch(value) for value in hashes)
        and all(type(value) is int and 0 <= value < 2**48 for value in counts)
    )
