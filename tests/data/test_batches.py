"""Batches: the order, errors and early ends of threaded reading."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dreamkd import data
from dreamkd.data import Preprocessing, check_labels, open_images, stack
from dreamkd.errors import DataError
from dreamkd.events import Event, Progress
from dreamkd.models import Classifier

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


def test_the_whole_is_read_and_said_to_be():
    images = open_images("sklearn:digits", preprocessing=GREY)
    heard: list[Event] = []
    pixels, _ = stack(images, on_event=heard.append)
    assert len(pixels) == 600
    assert heard == [Progress("read", done, 600, "images") for done in (256, 512, 600)]


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_the_network_has_no_class_for_is_named(label: int, digits: Classifier):
    images = open_images("sklearn:digits", preprocessing=GREY)
    check_labels(torch.tensor([9, 0]), digits.card, images)
    line = rf"digits: 600 pictures, test split holds label {label}, but .* has classes 0 to 9$"
    with pytest.raises(DataError, match=line):
        check_labels(torch.tensor([9, label, 0]), digits.card, images)


def test_a_picture_file_has_a_largest_size(tmp_path, monkeypatch):
    content = constant(7)
    tar = tar_of(tmp_path / "d.tar", {"a/0.png": content, "a/1.png": content + b"\0"})
    images = open_images(str(tar), preprocessing=GREY)
    monkeypatch.setattr("dreamkd.data.pictures.MAX_BYTES", len(content))
    assert images[0][1] == 0
    line = rf"d\.tar: a/1\.png has {len(content) + 1} bytes, at most {len(content)}$"
    with pytest.raises(DataError, match=line):
        images[1]


@pytest.mark.parametrize(("ending", "label"), [("cls", b"%d"), ("json", b'{"label":%d}')])
def test_a_label_file_has_a_largest_size(tmp_path, monkeypatch, ending, label):
    monkeypatch.setattr("dreamkd.data.archives.MAX_LABEL_BYTES", len(label % 7))
    for number, name in ((7, "small.tar"), (10, "large.tar")):
        tar_of(tmp_path / name, {"x.png": constant(1), f"x.{ending}": label % number})
    assert open_images(str(tmp_path / "small.tar"), preprocessing=GREY)[0][1] == 7
    line = rf"large\.tar: x\.{ending} has {len(label % 10)} bytes$"
    with pytest.raises(DataError, match=line):
        open_images(str(tmp_path / "large.tar"), preprocessing=GREY)
