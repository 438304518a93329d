"""Headers of a tar that are read the short way: as `tarfile` reads them, or not at all."""

import tarfile

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dreamkd.tars import _plain

#: Fields of a header that say nothing about a member's name, type or size: mode to group, time,
#: device.
_UNREAD = {*range(100, 124), *range(136, 148), *range(329, 345)}

#: Its size and checksum.
_NUMBERS = (*range(124, 136), *range(148, 156))

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
forms = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
sizes = st.integers(0, 8**11 - 1) | st.integers(8**11, 2**50)


def header_of(name: str, kind: bytes, form: int, size: int) -> bytes:
    assume(len(name.encode()) <= (100 if kind == tarfile.REGTYPE else 99))
    assume(form != tarfile.USTAR_FORMAT or size < 8**11)
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "" if kind == tarfile.REGTYPE else "a/b"
    return info.tobuf(form, "utf-8", "surrogateescape")[-tarfile.BLOCKSIZE :]


def known(header: bytes) -> tuple[str, int] | None:
    """Of a regular file, what tarfile knows of it."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return None
    return (info.name, info.size) if info.type == tarfile.REGTYPE else None


def with_checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    return header[:148] + f"{total:06o}\0 ".encode() + header[156:]


@settings(max_examples=100, deadline=None)
@given(name=names, kind=kinds, form=forms, size=sizes)
@example(name="é" * 50, kind=tarfile.REGTYPE, form=tarfile.USTAR_FORMAT, size=8**11 - 1)
@example(name="x" * 100, kind=tarfile.REGTYPE, form=tarfile.GNU_FORMAT, size=2**40)
def test_a_header_is_what_tarfile_says(name: str, kind: bytes, form: int, size: int) -> None:
    header = header_of(name, kind, form, size)
    short = size < 8**11 or form == tarfile.PAX_FORMAT  # else in base 256
    assert _plain(header) == (known(header) if short else None)
    assert (_plain(header) is None) is (kind != tarfile.REGTYPE or not short)


@settings(max_examples=250, deadline=None)
@given(
    kind=kinds,
    form=forms,
    place=st.integers(0, tarfile.BLOCKSIZE - 1) | st.sampled_from([*_NUMBERS, 156, 257, 345]),
    bits=st.integers(1, 255),
    valid=st.booleans(),
)
@example(kind=tarfile.REGTYPE, form=tarfile.USTAR_FORMAT, place=345, bits=0x61, valid=True)
@example(kind=tarfile.REGTYPE, form=tarfile.USTAR_FORMAT, place=0, bits=0x61, valid=True)
@example(kind=tarfile.REGTYPE, form=tarfile.USTAR_FORMAT, place=1, bits=0x84, valid=True)
@example(kind=tarfile.REGTYPE, form=tarfile.USTAR_FORMAT, place=135, bits=0x41, valid=True)
def test_a_changed_header_is_what_tarfile_says_or_left_to_it(
    kind: bytes, form: int, place: int, bits: int, valid: bool
) -> None:
    """Damaged, or by someone who made its checksum right again."""
    header = bytearray(header_of("a/é.png", kind, form, 1234))
    header[place] ^= bits
    changed = with_checksum(bytes(header)) if valid else bytes(header)
    if not (valid and place in _UNREAD):
        assert _plain(changed) in (None, known(changed))
