"""Shards by others: whatever is wrong is named in a `DataError`."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
import torch

from dreamkd import samples, shards
from dreamkd.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard-00000.tar"


def tar_of(*entries: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def sample(key="a", image=None, label=b"1", record=None) -> list[tuple[str, bytes]]:
    image = (
        samples.encode(torch.arange(60, dtype=torch.uint8).view(3, 4, 5))
        if image is None
        else image
    )
    record = json.dumps({"key": key, "label": 1}).encode() if record is None else record
    return [(f"{key}.png", image), (f"{key}.cls", label), (f"{key}.json", record)]


GOOD = sample()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is cut short"),
        (b"PK\3\4" * 256, "is not an uncompressed tar"),
        (tar_of(*GOOD)[:-10240], "is cut short"),
        (tar_of(*GOOD)[:1000], "cut short"),
        (tar_of(*GOOD)[: 3 * 1024], "is cut short: it ends at byte 3072 without an end mark"),
        (tar_of(), "holds no images"),
        (tar_of(*GOOD[:2]), "'a.cls' belongs to an image that is incomplete"),
        (tar_of(GOOD[1], GOOD[0], GOOD[2]), "'a.cls' is not KEY.png"),
        (tar_of(GOOD[0], GOOD[2], GOOD[1]), "'a.json' lies where a.cls belongs"),
        (tar_of(*GOOD, ("a.txt", b"")), "'a.txt' belongs to an image that is incomplete"),
        (tar_of(*GOOD, *GOOD), "holds 'a' twice"),
        (tar_of(*sample(key="../a")), "'../a.png' is not KEY.png"),
        (tar_of(*sample(key="/etc/a")), "'/etc/a.png' is not KEY.png"),
        (tar_of(*sample(label=b"0x1")), "a.cls is b'0x1', not a class index"),
        (tar_of(*sample(label=b"2")), "a.cls says 2, a.json 1"),
        (tar_of(*sample(label=b"1" * 10)), "a.cls has 10 bytes, at most 9"),
        (tar_of(*sample(record=b"{")), "a.json is not JSON"),
        (tar_of(*sample(record=b"[" * 100_000)), "a.json is not JSON"),
        (tar_of(*sample(record=b"\xff")), "a.json is not JSON"),
        (tar_of(*sample(record=b"[]")), "a.json is no record of an image"),
        (tar_of(*sample(record=b'{"key": "b", "label": 1}')), "record of another image"),
        (tar_of(*sample(image=b"GIF89a")), "a.png is not a PNG"),
        (tar_of(*sample(image=png(2**31, 1))), "a.png is 2147483648 x 1 pixels; 1 to 4096"),
        (tar_of(*sample(image=png(4, 4, depth=16))), "a.png is not 8-bit grey or RGB"),
        (tar_of(*sample(image=png(4, 4, colour=6))), "a.png is not 8-bit grey or RGB"),
        (tar_of(*sample(image=png(4, 4)[:-12])), "a.png is not a plain PNG"),
        (tar_of(*sample(image=png(4, 4) + b"tail")), "a.png is damaged"),
        (tar_of(("a.png", b""), kind=tarfile.SYMTYPE), "is a link, a device or sparse"),
        (tar_of(("a.png", b""), kind=tarfile.CHRTYPE), "is a link, a device or sparse"),
        (tar_of(("d", b""), kind=tarfile.DIRTYPE)[:512] + tar_of(*GOOD), "something foreign lies"),
        (tar_of(*GOOD) + b"tail", "something foreign lies after the last member"),
    ],
)
def test_a_foreign_or_damaged_shard_is_refused(path: Path, data, says):
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(shards.read(path))
    assert str(caught.value).startswith(path.name)
    assert says in str(caught.value)


def test_a_header_cannot_send_the_reader_in_circles(path: Path):
    """A negative size in base 256 made Python's tarfile loop (CVE-2025-8194)."""
    header = bytearray(tar_of(("a.png", b""))[:512])
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + tar_of(*GOOD))
    with pytest.raises(DataError, match="ends beyond the file"):
        list(shards.read(path))


def test_a_missing_shard_is_named(path: Path):
    with pytest.raises(DataError, match=r"cannot read .*shard-00000\.tar: No such file"):
        list(shards.read(path))
