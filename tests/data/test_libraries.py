"""torchvision's and scikit-learn's data sets, and specifications that name nothing."""

import pickle
import struct
import sys

import numpy as np
import pytest

from dreamkd import data
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.errors import DataError

GREY = Preprocessing(input_size=(1, 4, 4))
RGB = Preprocessing(input_size=(3, 4, 4))


def values(spec: object, how: Preprocessing = GREY) -> list[tuple[int, int]]:
    """(grey value, label) of constant pictures."""
    images, labels = stack(open_images(str(spec), preprocessing=how))
    return list(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


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
        ("torchvision:STL10:x:train", r"STL10\('x', split='train', download=True\)"),
        ("torchvision:FGVCAircraft:x:train", r"Aircraft\('x', split='trainval', download=True\)"),
        ("torchvision:FGVCAircraft:x:test", r"Aircraft\('x', split='test', download=True\)"),
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


def test_damaged_files_of_torchvision_are_one_line(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(bytes(64))
    with pytest.raises(DataError, match="expects its files in"):
        open_images(f"torchvision:MNIST:{tmp_path}", preprocessing=RGB)
    names = tmp_path / "dtd" / "dtd" / "labels"
    names.mkdir(parents=True)
    (names / "test1.txt").write_text("banded/gone.jpg\n")
    images = open_images(f"torchvision:DTD:{tmp_path}", preprocessing=RGB)
    with pytest.raises(DataError, match=r"picture 0 of torchvision's DTD .*gone\.jpg"):
        images[0]


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
    assert labels.bincount().min() > 50
    assert images.unique().tolist() == [round(grey * 255 / 16) for grey in range(17)]
    assert test.source == "scikit-learn's digits: 600 pictures, test split"
    assert test.class_names == tuple("0123456789")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'dreamkd\[demo\]'"):
        open_images("sklearn:digits", preprocessing=GREY)
