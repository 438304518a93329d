"""Pictures on disk: every container, its labels, and its damage."""

import gzip
import io
import json
import os
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamkd import manifest, shards
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.data import preprocessing as preprocessing_module
from dreamkd.errors import DataError
from dreamkd.imagefolder import Folders

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


@pytest.mark.parametrize(
    ("names", "order"),
    [("0 1 2 10 11", "0, 1, 10, 11"), ("00 01 02 10", ""), ("0 1 2", ""), ("a 1 10 2", "")],
)
def test_numbers_that_are_not_in_their_order_are_said(tmp_path, names, order):
    for name in names.split():
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.png").write_bytes(constant(1))
    tar_of(tmp_path / "t.tar", {f"{name}/x.png": constant(1) for name in names.split()})
    for spec in (tmp_path / "set", tmp_path / "t.tar"):
        said = open_images(str(spec), preprocessing=GREY).source
        assert said.endswith(f" class folders, labelled in the order {order}, ..." * bool(order))
        assert order or said.endswith(" class folders")


def test_an_empty_class_folder_is_refused_since_it_shifts_labels(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "x.png").write_bytes(constant(1))
    with pytest.raises(DataError, match=r"class folder .*/a holds no pictures"):
        open_images(str(tmp_path), preprocessing=GREY)


def test_what_the_system_refuses_to_open_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read nnn.*: File name too long"):
        open_images("n" * 300, preprocessing=GREY)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"cannot read .*/a/x\.png: No such file"):
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


def write_run(folder: Path, count: int = 2) -> list[manifest.Shard]:
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


def write_run_of_folders(folder: Path) -> Folders:
    """Classes 1 and 3 of four, two images each."""
    files = Folders(folder, ["a", "b", "c", "d"])
    files.prepare()
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    shard = files.write(0, images, labels=[3, 1, 1, 3], records=[{"key": str(i)} for i in range(4)])
    (folder / "manifest.jsonl").write_text(json.dumps(shard.to_json()) + "\n")
    return files


def test_a_run_of_class_folders_has_the_labels_of_its_records(tmp_path):
    write_run_of_folders(tmp_path)
    for spec in (tmp_path, tmp_path / "images"):
        assert values(spec) == [(0, 3), (1, 1), (2, 1), (3, 3)]
        images = open_images(str(spec), preprocessing=GREY)
        assert images.source == f"{tmp_path}: 4 pictures of a run, equal to the manifest"
        assert images.class_names == ()


def test_a_run_is_known_from_within_and_by_any_name(tmp_path, monkeypatch):
    write_run(tmp_path / "shards")
    (tmp_path / "images").mkdir()
    write_run_of_folders(tmp_path / "images")
    for name, inside in (("shards", "shards"), ("images", "images")):
        for folder, spec in ((tmp_path, name), (tmp_path / name / inside, ".")):
            monkeypatch.chdir(folder)
            assert open_images(spec, preprocessing=GREY).pictures.synthesised
    monkeypatch.chdir(tmp_path / "shards" / "shards")
    assert open_images("*.tar", preprocessing=GREY).pictures.synthesised


def test_a_run_of_class_folders_is_checked_against_its_manifest(tmp_path):
    files = write_run_of_folders(tmp_path)
    foreign = files.images / "b" / "more.jpeg"
    foreign.write_bytes(constant(9))
    with pytest.raises(DataError, match=r"b/more\.jpeg is no image of the run in .*; remove it"):
        open_images(str(tmp_path), preprocessing=GREY)
    foreign.rename(files.images / "b" / "2.png")
    with pytest.raises(DataError, match=r"b/2\.png is not the file that the manifest recorded"):
        open_images(str(tmp_path / "images"), preprocessing=GREY)
    write_run_of_folders(tmp_path)
    files.path(1).write_bytes(files.path(0).read_bytes())
    with pytest.raises(DataError, match=r"batch-000001\.jsonl is not in .*run the same command"):
        open_images(str(tmp_path), preprocessing=GREY)
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match="holds no images yet"):
        open_images(str(tmp_path), preprocessing=GREY)


def test_a_glob_is_of_tars(tmp_path):
    write_run(tmp_path / "made")
    with pytest.raises(DataError, match=r"ma\* names runs; write '.*/ma\*/shards/\*\.tar'$"):
        open_images(f"{tmp_path}/ma*", preprocessing=GREY)
    assert values(f"{tmp_path}/ma*/shards/*.tar") == values(tmp_path / "made")
    with pytest.raises(DataError, match=r"names .*/made/shards, which is no tar; name one folder"):
        open_images(f"{tmp_path}/made/*", preprocessing=GREY)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match=r"names .*/pipe\.tar, which is no tar"):
        open_images(str(tmp_path / "pipe.tar"), preprocessing=GREY)


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


def test_what_is_no_picture_is_named_without_an_address_in_memory(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "empty.png").touch()
    (tmp_path / "a" / "text.png").write_text("no picture")
    images = open_images(str(tmp_path), preprocessing=GREY)
    for index, line in enumerate(
        ("empty.png is empty", "text.png is not a readable JPEG, PNG, WEBP, BMP, PPM, TIFF")
    ):
        with pytest.raises(DataError) as refusal:
            images[index]
        assert str(refusal.value) == f"{tmp_path}/a/{line}"


def test_a_file_that_shrinks_later_is_noticed(tmp_path):
    path = tar_of(tmp_path / "d.tar", {"a/x.png": constant(1)})
    images = open_images(str(path), preprocessing=GREY)
    os.truncate(path, 520)
    with pytest.raises(DataError, match=r"d\.tar is shorter than when it was opened"):
        images[0]


def test_a_run_that_trained_on_given_images_holds_none(tmp_path):
    """Its folder of labels is no class folder, to be filled or removed."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "resolved.json").write_text("{}")
    with pytest.raises(DataError, match=r"is a run that made no images; give the data"):
        open_images(str(tmp_path), preprocessing=GREY)
