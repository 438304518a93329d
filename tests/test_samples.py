"""Samples: one PNG per image, whoever wrote it."""

import struct
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkd import samples
from dreamkd.errors import DataError

IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
LABELS = [3, 0]


def test_pixels_hash_depends_on_shape_and_labels_and_not_on_strides() -> None:
    first = samples.pixels_sha256(IMAGES, LABELS)
    assert samples.pixels_sha256(IMAGES.flatten(2)[..., None], LABELS) != first
    assert samples.pixels_sha256(IMAGES, [3, 1]) != first
    strided = IMAGES.contiguous(memory_format=torch.channels_last)
    assert samples.pixels_sha256(strided, LABELS) == first


def attempt(png: bytes) -> str:
    try:
        return "intact" if torch.equal(samples.decode(png), IMAGES[0]) else "other pixels"
    except DataError as error:
        return "refused by name" if str(error).startswith("image ") else str(error)


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=600), position=st.integers(0, 80))
def test_a_png_never_raises_anything_else(noise: bytes, position: int) -> None:
    png = samples.encode(IMAGES[0])
    for hostile in (noise, png[:position] + noise, png[:position] + noise + png[position:]):
        assert attempt(hostile) in ("intact", "refused by name")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_png_that_does_not_decode_is_refused() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 4, 8, 2, 0, 0, 0))
    # 64 zero bytes are fewer than the 4 * (1 + 3 * 32) that 32 x 4 RGB pixels need
    pixels = chunk(b"IDAT", zlib.compress(bytes(64)))
    png = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="batch 7 is damaged"):
        samples.decode(png, name="batch 7")
