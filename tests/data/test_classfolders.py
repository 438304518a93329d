"""Class folders: the same classes in a folder and in tars of it, and what is no class."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dreamkd.data import ImageSet, Preprocessing, open_images, stack
from dreamkd.errors import DataError

GREY = Preprocessing(input_size=(1, 4, 4))


def constant(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(root: Path, names: str) -> Path:
    """Pictures of these names, the k-th of grey value k."""
    for k, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(constant(k))
    return root


def tar_of(path: Path, names: str) -> Path:
    """Pictures of these names, the k-th of grey value k."""
    with tarfile.open(path, "w") as tar:
        for k, name in enumerate(names.split()):
            member, content = tarfile.TarInfo(name), constant(k)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def opened(spec: Path | str) -> ImageSet:
    return open_images(str(spec), preprocessing=GREY)


def labels(spec: Path | str) -> list[str]:
    """The class of every picture, by name."""
    images = opened(spec)
    return [images.class_names[label] for label in stack(images)[1].tolist()]


def values(spec: Path | str) -> list[int]:
    return stack(opened(spec))[0][:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("cat/x.png dog/x.png", "cat dog"),
        ("real/cat/x.png real/dog/x.png", "cat dog"),
        ("./real/cat/x.png ./real/dog/x.png", "cat dog"),
        ("/a/real/cat/x.png /a/real/dog/x.png", "cat dog"),
        ("../real/cat/x.png ../real/dog/x.png", "cat dog"),
        ("cat/0/x.png cat/1/x.png dog/0/x.png", "cat cat dog"),
        ("real/cat/0/x.png real/cat/1/x.png real/dog/0/x.png", "cat cat dog"),
        ("real/cat/x.png real/cat/deep/x.png real/dog/0/1/x.png", "cat cat dog"),
        ("cat/x.png cat/y.png", "cat cat"),
        ("real/cat/x.png real/cat/y.png", "cat cat"),
        ("real/cat/x.png real/cat/deep/x.png", "cat cat"),
        ("real/0/x.png real/0/y.png real/1/x.png", "0 0 1"),
    ],
)
def test_the_first_folder_that_differs_is_the_class_in_a_tar(tmp_path, names, classes):
    assert labels(tar_of(tmp_path / "t.tar", names)) == classes.split()


def test_a_folder_and_a_tar_of_it_have_the_same_classes(tmp_path):
    names = " ".join(f"{c}/{k}/x.png" for c in ("ape", "bee", "cat") for k in range(10))
    root = folder_of(tmp_path / "real", names)
    with tarfile.open(tmp_path / "real.tar", "w") as tar:
        tar.add(root, arcname="data/real")
    assert sorted(labels(tmp_path / "real.tar")) == labels(root)
    assert labels(root) == ["ape"] * 10 + ["bee"] * 10 + ["cat"] * 10


def test_what_is_hidden_is_neither_picture_nor_class(tmp_path):
    names = (
        "cat/x.png cat/.ipynb_checkpoints/x.png cat/._x.png .cache/x.png __MACOSX/cat/x.png "
        "dog/x.png"
    )
    assert labels(tar_of(tmp_path / "t.tar", names)) == ["cat", "dog"]
    assert values(tmp_path / "t.tar") == [0, 5]
    assert labels(folder_of(tmp_path / "real", names)) == ["cat", "dog"]
    assert values(tmp_path / "real") == [0, 5]


@pytest.mark.parametrize(
    ("first", "second", "classes"),
    [
        ("real/cat/x.png", "real/dog/x.png", "cat dog"),
        ("cat/x.png", "dog/x.png", "cat dog"),
        ("cat/x.png dog/x.png", "dog/y.png", "cat dog dog"),
        ("real/cat/0/x.png real/cat/1/x.png", "real/dog/0/x.png", "cat cat dog"),
        ("cat/0/x.png cat/1/x.png dog/0/x.png", "dog/1/x.png", "cat cat dog dog"),
        ("cat/x.png cat/deep/x.png", "dog/0/x.png dog/1/x.png", "cat cat dog dog"),
        ("real/cat/x.png", "", "cat"),
    ],
)
def test_tars_opened_together_have_the_classes_of_all(tmp_path, first, second, classes):
    tar_of(tmp_path / "0.tar", first)
    tar_of(tmp_path / "1.tar", second)
    assert labels(tmp_path / "*.tar") == classes.split()
    assert labels(tmp_path) == classes.split()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/cat/x.png a/dog/x.png", "b/cat/x.png b/dog/x.png"),
        ("a/cat/x.png", "b/dog/x.png"),
    ],
)
def test_tars_each_with_a_leading_folder_of_its_own_are_refused(tmp_path, first, second):
    tar_of(tmp_path / "0.tar", first)
    tar_of(tmp_path / "1.tar", second)
    with pytest.raises(
        DataError,
        match=r"one leading folder \('a', 'b', \.\.\.\), which may be a class, or hold class "
        r"folders such as 'cat'; pack them from inside the folder of all class folders, or with",
    ):
        opened(tmp_path / "*.tar")


@pytest.mark.parametrize("names", ["x.png cat/x.png", "./x.png real/cat/y.png real/dog/z.png"])
def test_a_picture_beside_the_class_folders_of_a_tar_is_refused(tmp_path, names):
    with pytest.raises(DataError, match=r"x\.png' has neither a class folder nor a .cls beside it"):
        opened(tar_of(tmp_path / "t.tar", names))


def test_a_tar_beside_class_folders_is_refused_unless_it_is_named(tmp_path):
    root = folder_of(tmp_path / "real", "cat/x.png dog/x.png")
    tar = tar_of(root / "stray.tar", "ape/x.png bee/x.png")
    with pytest.raises(
        DataError,
        match=rf"{root} holds a tar \(stray\.tar\) and class folders \(cat\); to read the tar, "
        rf"name {tar} or a glob; to read the class folders, move the tar elsewhere",
    ):
        opened(root)
    assert labels(tar) == labels(f"{root}/*.tar") == ["ape", "bee"]
    tar.rename(tmp_path / "stray.tar")
    assert labels(root) == ["cat", "dog"]


def test_folders_without_pictures_beside_tars_are_no_class_folders(tmp_path):
    tar_of(tmp_path / "t.tar", "ape/x.png bee/x.png")
    for name in ("logs/today.txt", ".cache/x.png", "empty/.x.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    assert labels(tmp_path) == ["ape", "bee"]


def test_links_that_lead_back_repeat_no_picture(tmp_path):
    root = folder_of(tmp_path / "real", "cat/x.png cat/deep/x.png dog/x.png")
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "cat" / "deep" / "up").symlink_to("..")
    (root / "cat" / "all").symlink_to(root)
    (root / "cat" / "everything").symlink_to(tmp_path)
    assert labels(root) == ["cat", "cat", "dog"]


def test_a_folder_that_two_links_lead_to_is_read_once(tmp_path):
    root = folder_of(tmp_path / "real", "cat/x.png")
    folder_of(tmp_path / "more", "y.png z.png")
    for name in ("a", "b"):
        (root / "cat" / name).symlink_to(tmp_path / "more")
    (root / "dog").symlink_to(tmp_path / "more")  # of another class: another walk
    images = opened(root)
    names = [images.pictures.name(k).removeprefix(f"{root}/") for k in range(len(images))]
    assert names == ["cat/a/y.png", "cat/a/z.png", "cat/x.png", "dog/y.png", "dog/z.png"]
