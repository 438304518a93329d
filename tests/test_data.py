"""Data: timm's and torchvision's preprocessing to the bit, every container, and its damage."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from dreamkd import data, shards
from dreamkd.data import Preprocessing, open_images, preprocess, stack
from dreamkd.data import preprocessing as preprocessing_module
from dreamkd.errors import ConfigError, DataError

GREY = Preprocessing(input_size=(1, 4, 4))
RGB = Preprocessing(input_size=(3, 4, 4))


def picture(width: int, height: int) -> Image.Image:
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


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


@contextmanager
def suppress_naming(name: str):
    """Let a `DataError` that names the file pass, and nothing else."""
    try:
        yield
    except DataError as error:
        if name not in str(error):
            raise


def values(spec: object, how: Preprocessing = GREY) -> list[tuple[int, int]]:
    """(grey value, label) of constant pictures."""
    images, labels = stack(open_images(str(spec), preprocessing=how))
    return list(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40))
    | st.integers(1, 40).map(lambda s: (s, s)),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 0.965, 1.0]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_preprocessing_equals_timm(width, height, crop, crop_pct, interpolation):
    image = picture(width, height)
    theirs = create_transform(
        (3, *crop), is_training=False, crop_pct=crop_pct, interpolation=interpolation,
        normalize=False,
    )  # fmt: skip
    how = Preprocessing(input_size=(3, *crop), crop_pct=crop_pct, interpolation=interpolation)
    assert torch.equal(preprocess(image, how), theirs(image))


@pytest.mark.parametrize("size", [(300, 280), (280, 300), (256, 256), (90, 500)])
def test_preprocessing_equals_torchvision(size):
    image = picture(*size)
    bilinear = v2.InterpolationMode.BILINEAR
    theirs = v2.Compose([v2.Resize(232, bilinear), v2.CenterCrop(224), v2.PILToTensor()])
    how = Preprocessing(input_size=(3, 224, 224), crop_pct=224 / 232, interpolation="bilinear")
    assert torch.equal(preprocess(image, how), theirs(image))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "1"])
@pytest.mark.parametrize("how", [GREY, RGB])
def test_every_mode_becomes_the_channels_of_the_network(mode, how):
    image = picture(4, 4).convert(mode)
    mode = "L" if how is GREY else "RGB"
    channels = how.input_size[0]
    theirs = torch.from_numpy(np.array(image.convert(mode))).view(4, 4, channels).permute(2, 0, 1)
    assert torch.equal(preprocess(image, how), theirs)


def test_a_transparent_palette_gives_its_colours_without_a_warning():
    image = picture(4, 4).quantize(8)
    colours = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    image.info["transparency"] = bytes(range(8))
    assert torch.equal(preprocess(image, RGB), colours)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"interpolation": "bicubik"}, r"did you mean 'bicubic'\?"),
        ({"crop_pct": 0.0}, r"crop_pct is in \(0, 1\], not 0.0"),
        ({"crop_pct": 87.5}, r"crop_pct is in \(0, 1\], not 87.5"),
        ({"input_size": (2, 8, 8)}, "1 or 3 channels"),
    ],
)
def test_illegal_preprocessing_is_refused(field, says):
    with pytest.raises(ConfigError, match=says):
        Preprocessing(**{"input_size": (3, 8, 8), **field})


def test_pictures_that_become_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing_module, "MAX_PIXELS", 1000)
    tar = tar_of(
        tmp_path / "a.tar",
        {"a/0.png": file_of(picture(1, 300)), "a/1.png": file_of(picture(40, 40))},
    )
    images = open_images(str(tar), preprocessing=RGB)
    with pytest.raises(DataError, match=r"a\.tar: a/0\.png: 1 x 300 .* \(4, 1200\): too large"):
        images[0]
    with pytest.raises(DataError, match=r"a/1\.png has 1600 pixels; at most 1000"):
        images[1]


def test_folders_are_numbered_in_alphabetical_order(tmp_path):
    for name, value in [("b", 20), ("a", 10), ("c/deep", 30), (".hidden", 99)]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(constant(value))
        (tmp_path / name / "notes.txt").write_text("no picture")
        (tmp_path / name / "._x.png").write_bytes(b"of a Mac")
    images = open_images(str(tmp_path), preprocessing=GREY)
    assert images.class_names == ("a", "b", "c")
    assert images.source == f"{tmp_path}: 3 pictures in 3 class folders"
    assert values(tmp_path) == [(10, 0), (20, 1), (30, 2)]


def test_an_empty_class_folder_is_refused_since_it_shifts_labels(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "x.png").write_bytes(constant(1))
    with pytest.raises(DataError, match=r"class folder .*/a holds no pictures"):
        open_images(str(tmp_path), preprocessing=GREY)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_class_folders_by_glob(tmp_path, form):
    long = "x" * 90 + "/" + "y" * 130  # needs an extended header in GNU and pax
    prefix = "data" if form == tarfile.USTAR_FORMAT else long
    tar_of(tmp_path / "t-0.tar", {f"{prefix}/b/0.png": constant(20), "README.md": b"text"}, form)
    tar_of(tmp_path / "t-1.tar", {f"{prefix}/a/é.png": constant(10)}, form)
    assert open_images(f"{tmp_path}/t-*.tar", preprocessing=GREY).class_names == ("a", "b")
    assert values(f"{tmp_path}/t-*.tar") == [(20, 1), (10, 0)]
    assert values(tmp_path) == [(20, 1), (10, 0)]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_webdataset_labels_from_cls_or_json(tmp_path, form):
    image = file_of(Image.new("L", (4, 4), 50).convert("RGB"), form)
    files = {
        f"s/000.{form}": image,
        "s/000.cls": b"7\n",
        f"s/001.{form.lower()}": image,
        "s/001.json": b'{"label": 9, "other": [1]}',
        "s/002.txt": b"no picture",
    }
    images = open_images(str(tar_of(tmp_path / "w.tar", files)), preprocessing=GREY)
    assert images.class_names == ()
    assert "2 pictures in 1 tar, WebDataset layout" in images.source
    assert stack(images)[1].tolist() == [7, 9]


def write_run(folder: Path, count: int = 2) -> list[shards.Shard]:
    (folder / "shards").mkdir(parents=True)
    written = []
    for k in range(count):
        images = torch.full((2, 1, 4, 4), 10 * k, dtype=torch.uint8)
        path = folder / "shards" / f"shard-{k:05d}.tar"
        records = [{"key": f"{k}_{i}"} for i in range(2)]
        written.append(shards.write(path, images, labels=[k, k + 1], records=records))
    lines = [json.dumps(shard.to_json()) + "\n" for shard in written]
    (folder / "manifest.jsonl").write_text("".join(lines))
    return written


def test_a_run_folder_is_checked_against_its_manifest(tmp_path):
    write_run(tmp_path)
    expected = [(0, 0), (0, 1), (10, 1), (10, 2)]
    for spec in (tmp_path, tmp_path / "shards", tmp_path / "shards" / "shard-*.tar"):
        assert values(spec) == expected
        assert open_images(str(spec), preprocessing=GREY).source.endswith("equal to the manifest")
    assert values(tmp_path / "shards" / "shard-00001.tar") == expected[2:]


def test_a_shard_that_differs_from_the_manifest_is_refused(tmp_path):
    write_run(tmp_path)
    second = tmp_path / "shards" / "shard-00001.tar"
    images = torch.full((2, 1, 4, 4), 11, dtype=torch.uint8)
    shards.write(second, images, labels=[1, 2], records=[{"key": "1_0"}, {"key": "1_1"}])
    with pytest.raises(DataError, match=r"shard-00001\.tar is not the file"):
        open_images(str(tmp_path), preprocessing=GREY)
    second.rename(second.with_name("shard-00002.tar"))
    with pytest.raises(DataError, match=r"shard-00002\.tar is not in .*run the same command"):
        open_images(str(tmp_path), preprocessing=GREY)


def test_a_run_without_shards_says_what_to_do(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match="holds no shards yet"):
        open_images(str(tmp_path), preprocessing=GREY)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no pictures"),
        ({"a/x.txt": b""}, "holds no pictures"),
        ({"x.png": constant(1)}, r"'x.png' has neither a class folder nor a .cls beside it"),
        ({"x.png": constant(1), "x.cls": b"cat"}, r"x.cls holds no integer label"),
        ({"x.png": constant(1), "x.cls": b"-1"}, "x.png has no integer label"),
        ({"x.png": constant(1), "x.json": b"{}"}, "x.json holds no integer label"),
        ({"x.png": constant(1), "x.json": b"[" * 9999}, "x.json holds no integer label"),
        ({"x.png": constant(1), "x.json": b'{"label": "1"}'}, "x.png has no integer label"),
        ({"x.png": constant(1), "x.cls": b"1", "y.png": constant(2)}, "y.png has no integer"),
    ],
)
def test_tars_without_labelled_pictures_are_refused(tmp_path, files, says):
    with pytest.raises(DataError, match=rf"d\.tar.*{says}"):
        open_images(str(tar_of(tmp_path / "d.tar", files)), preprocessing=GREY)


def test_links_and_cut_tars_are_refused(tmp_path):
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a/x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"d\.tar: 'a/x\.png' is a link"):
        open_images(str(path), preprocessing=GREY)
    whole = tar_of(path, {"a/x.png": constant(1)}).read_bytes()
    path.write_bytes(whole[:520])
    with pytest.raises(DataError, match=r"d\.tar is cut short or damaged: 'a/x\.png'"):
        open_images(str(path), preprocessing=GREY)
    path.write_bytes(gzip.compress(whole, compresslevel=0))
    with pytest.raises(DataError, match=r"d\.tar is not an uncompressed tar"):
        open_images(str(path), preprocessing=GREY)


@settings(max_examples=150, deadline=None)
@given(start=st.integers(0, 3000), length=st.integers(0, 600), patch=st.binary(max_size=20))
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_mutated_tar_raises_nothing_else(tmp_path_factory, form, start, length, patch):
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    files = {"x" * 120 + "/0.png": constant(1), "x/1.jpg": file_of(picture(4, 4), "JPEG")}
    whole = tar_of(path, files, form).read_bytes()
    path.write_bytes(whole[:start] + patch + whole[start + length :])
    with suppress_naming("mutated.tar"):
        stack(open_images(str(path), preprocessing=RGB))


def test_damaged_pictures_are_named(tmp_path):
    png, jpeg = file_of(picture(16, 16)), file_of(picture(16, 16), "JPEG")
    files = {
        "a/cut.png": png[:-40],
        "a/cut.jpg": jpeg[:-40],
        "a/eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    images = open_images(str(tar_of(tmp_path / "d.tar", files)), preprocessing=RGB)
    for index, name in enumerate(files):
        with pytest.raises(DataError, match=rf"d\.tar: {name} is not a readable JPEG, PNG"):
            images[index]


def test_a_file_that_shrinks_later_is_noticed(tmp_path):
    path = tar_of(tmp_path / "d.tar", {"a/x.png": constant(1)})
    images = open_images(str(path), preprocessing=GREY)
    os.truncate(path, 520)
    with pytest.raises(DataError, match=r"d\.tar is shorter than when it was opened"):
        images[0]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.tar", "no data at nowhere.tar; legal are FOLDER of class folders; TAR of"),
        ("torchvison:MNIST:x", r"no data at torchvison:MNIST:x; .*torchvision:NAME:ROOT"),
        ("torchvision:MNITS:x", r"torchvision:MNITS is none of .*did you mean 'MNIST'\?"),
        ("torchvision:MNIST", r"needs a folder: torchvision:MNIST:ROOT\[:train\|test\]"),
        ("torchvision:CIFAR10:x", r"expects its files in x/cifar-10-batches-py .*download=True"),
        ("torchvision:MNIST:x:train", r"in x/MNIST/raw .*MNIST\('x', train=True, download=True\)"),
        ("torchvision:STL10:x", r"in x/stl10_binary .*STL10\('x', split='test', download=True\)"),
        ("sklearn:iris", r"sklearn:iris is unknown; legal is sklearn:digits\[:train\|test\]"),
        ("sklearn:digits:val", "sklearn:digits:val is unknown"),
    ],
)
def test_specifications_that_name_nothing(tmp_path, monkeypatch, spec, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        open_images(spec, preprocessing=GREY)
    assert not list(tmp_path.iterdir())


def test_every_torchvision_name_says_where_its_files_belong(tmp_path):
    for name, known in data.libraries.TORCHVISION.items():
        for split in ("train", "test"):
            with pytest.raises(DataError) as caught:
                open_images(f"torchvision:{name}:{tmp_path}:{split}", preprocessing=RGB)
            message = str(caught.value)
            missing = f"expects its files in {tmp_path / known.files}" in message
            assert missing or "cannot be read: " in message, message


def test_torchvision_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, value, label in (("train", 60, 1), ("t10k", 90, 2)):
        pixels = struct.pack(">IIII", 0x803, 2, 28, 28) + bytes([value]) * (2 * 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        labels = struct.pack(">II", 0x801, 2) + bytes([label]) * 2
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    assert values(f"torchvision:MNIST:{tmp_path}") == [(90, 2)] * 2
    assert values(f"torchvision:MNIST:{tmp_path}:test") == [(90, 2)] * 2
    assert values(f"torchvision:MNIST:{tmp_path}:train") == [(60, 1)] * 2
    images = open_images(f"torchvision:MNIST:{tmp_path}", preprocessing=RGB)
    assert images.class_names[0] == "0 - zero"
    assert images.source == f"torchvision's MNIST at {tmp_path}: 2 pictures, test split"


def test_torchvision_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, value in {**{f"data_batch_{k}": k for k in range(1, 6)}, "test_batch": 99}.items():
        content = {"data": np.full((1, 3072), value, np.uint8), "labels": [value % 10]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"class{k}" for k in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    # torchvision reads pickles, and only those whose hash is the real data set's
    with pytest.raises(DataError, match="not found or corrupted"):
        open_images(f"torchvision:CIFAR10:{tmp_path}", preprocessing=RGB)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    assert values(f"torchvision:CIFAR10:{tmp_path}", RGB) == [(99, 9)]
    assert values(f"torchvision:CIFAR10:{tmp_path}:train", RGB) == [(k, k) for k in range(1, 6)]


def test_digits_split_by_writers():
    how = Preprocessing(input_size=(1, 8, 8))
    train = open_images("sklearn:digits:train", preprocessing=how)
    test = open_images("sklearn:digits", preprocessing=how)
    assert (len(train), len(test)) == (1197, 600)
    images, labels = stack(test)
    assert (int(images.max()), labels.bincount().min() > 50) == (255, True)
    assert test.source == "scikit-learn's digits: 600 pictures, test split"
    assert test.class_names == tuple("0123456789")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'dreamkd\[demo\]'"):
        open_images("sklearn:digits", preprocessing=GREY)


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
    larger = images.with_preprocessing(Preprocessing(input_size=(3, 12, 12)))
    assert larger[5][0].shape == (3, 12, 12)
    assert larger[5][1] == images[5][1]
    assert larger.source == images.source
