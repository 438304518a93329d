"""Members of a tar by offset: nothing is extracted, no header is believed before it is checked.

Written instead of using `tarfile.open`, which allocates what an extended header claims, recurses
once per extended header, and in the Python releases of 2025 and before loops for ever on a negative
size (CVE-2025-8194).
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dreamkd.errors import DataError, said

#: Size of a tar block in bytes: headers and contents start on its multiples.
BLOCK = tarfile.BLOCKSIZE

#: Largest extended header (a long name) in bytes.
MAX_HEADER = 2**20

_LONG_NAME = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_OCTAL = re.compile(rb"[0-7]+[ \0]+")
_IGNORED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """A regular file in a tar: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header starts."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar (ustar, GNU, pax) in file order.

    Raises:
        DataError: the file is missing, is no tar, is cut short, or holds a link or a device.
    """
    try:
        with open(path, "rb") as file:
            yield from _walk(file, path.name)
    except OSError as error:
        raise DataError(f"cannot read {path}: {said(error)}") from error


def _walk(file: BinaryIO, name: str) -> Iterator[Member]:
    size = os.fstat(file.fileno()).st_size
    position, long_name = 0, None
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise DataError(f"{name} is cut short: it ends at byte {size} without an end mark")
        if header.count(0) == BLOCK:
            return
        if not long_name and (plain := _plain(header)):
            member = Member(plain[0], position + BLOCK, plain[1])
            if member.offset + member.size <= size:
                position = member.end
                yield member
                continue
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            what = "is damaged" if position else "is not an uncompressed tar"
            raise DataError(f"{name} {what}: {error} at byte {position}") from error
        if info.isdir():
            info.size = 0  # some writers put the size of the folder's contents here
        member = Member(long_name or info.name, position + BLOCK, info.size)
        if info.size < 0 or member.offset + info.size > size:
            raise DataError(f"{name} is cut short or damaged: {member.name!r} ends beyond the file")
        position = member.end
        if info.type in _LONG_NAME:
            long_name = _long_name(file, name, member, info.type) or long_name
        elif info.type in _IGNORED:
            continue
        else:
            long_name = None
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield member
            elif not info.isdir():
                raise DataError(f"{name}: {member.name!r} is a link, a device or sparse, no file")


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size of a regular file, if its header is as most are; it takes a tenth of the time.

    None for all else, damage too, of which `tarfile` is to judge.
    """
    size, checksum = header[124:136], header[148:156]
    if header[156:157] != tarfile.REGTYPE or header[345] or header[257:262] != b"ustar":
        return None  # no file; a long name in two parts; another format
    if not (_OCTAL.fullmatch(size) and _OCTAL.fullmatch(checksum)):
        return None
    if int(checksum.rstrip(b" \0"), 8) != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        return None
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return (name, int(size.rstrip(b" \0"), 8)) if name else None


def _long_name(file: BinaryIO, name: str, header: Member, kind: bytes) -> str | None:
    """The name that an extended header gives to the member after it."""
    if header.size > MAX_HEADER:
        raise DataError(f"{name}: an extended header of {header.size} bytes")
    file.seek(header.offset)
    data = file.read(header.size)
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while data:  # pax records: b"LENGTH KEY=VALUE\n", LENGTH counting all of it
        digits = data.partition(b" ")[0]
        if not digits.isdigit() or len(digits) > 7 or not 0 < int(digits) <= len(data):
            raise DataError(f"{name} is damaged: a bad extended header at byte {header.offset}")
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
        data = data[int(digits) :]
    return None
