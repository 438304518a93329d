"""Batches: the order, errors and early ends of threaded reading."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreamkd import data
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.errors import DataError

GREY = Preprocessing(input_size=(1, 4, 4))
RGB = Preprocessing(input_size=(3, 4, 4))


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def constant(value: int) -> bytes:
    return file_of(Image.new("L", (4, 4), value))


def tar_of(path: Path, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_keep_the_order(workers):
    images = open_images("sklearn:digits", preprocessing=GREY)
    pixels, labels = zip(*data.batches(images, 128, workers=workers), strict=True)
    assert [len(part) for part in labels] == [128] * 4 + [88]
    expected = stack(images)
    assert torch.equal(torch.cat(pixels), expected[0])
    assert torch.equal(torch.cat(labels), expected[1])


def test_batches_pass_errors_on_and_stop_early(tmp_path):
    files = {f"a/{k}.png": constant(k) for k in range(6)} | {"a/3.png": b"broken"}
    images = open_images(str(tar_of(tmp_path / "d.tar", files)), preprocessing=GREY)
    stream = data.batches(images, 2, workers=2)
    assert next(stream)[0][:, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"a/3\.png"):
        next(stream)
    stream = data.batches(images, 1, workers=2)
    next(stream)
    stream.close()


def test_another_preprocessing_sees_the_same_pictures():
    images = open_images("sklearn:digits", preprocessing=GREY)
    larger = replace(images, preprocessing=Preprocessing(input_size=(3, 12, 12)))
    assert larger[5][0].shape == (3, 12, 12)
    assert larger[5][1] == images[5][1]
    assert larger.source == images.source
