"""Data sets that other libraries read: torchvision's with a labelled test split, scikit-learn's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dreamkd.data.pictures import Pictures
from dreamkd.errors import DataError, nearest


class _Torchvision(Pictures):
    def __init__(self, dataset: Any, *, source: str) -> None:
        super().__init__(source=source, class_names=getattr(dataset, "classes", ()))
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            picture, label = self.dataset[index]
        except (OSError, ValueError) as error:  # some sets are opened file by file
            raise DataError(f"{self.name(index)}: {error}") from error
        return picture, int(label)


class _Digits(Pictures):
    def __init__(self, split: str, images: np.ndarray[Any, Any], labels: Any) -> None:
        source = f"scikit-learn's digits: {len(labels)} pictures, {split} split"
        super().__init__(source=source, class_names=[str(digit) for digit in range(10)])
        self.pixels = np.rint(images * (255 / 16)).astype(np.uint8)  # stored as 0..16
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), int(self.labels[index])


def open_torchvision(rest: str) -> Pictures:
    """Open `NAME:ROOT[:train|test]` of torchvision's data sets; never downloads.

    Raises:
        DataError: unknown name, files missing or damaged, or a package that reads them missing.
    """
    name, _, place = rest.partition(":")
    root, split = _split(place)
    if name not in TORCHVISION:
        raise DataError(
            f"torchvision:{name} is none of {', '.join(TORCHVISION)}{nearest(name, TORCHVISION)}"
        )
    if not root:
        raise DataError(f"torchvision:{name} needs a folder: torchvision:{name}:ROOT[:train|test]")
    import torchvision

    known = TORCHVISION[name]
    try:
        dataset = getattr(torchvision.datasets, name)(root, download=False, **known.splits[split])
    except ImportError as error:
        raise DataError(f"torchvision:{name} cannot be read: {error}") from error
    except Exception as error:  # whatever it says of files that are not what it wrote
        raise DataError(
            f"torchvision:{name} expects its files in {Path(root) / known.files} ({error}); fetch "
            f"them with torchvision.datasets.{name}('{root}', {known.fetch(split)}download=True)"
        ) from error
    return _Torchvision(
        dataset, source=f"torchvision's {name} at {root}: {len(dataset)} pictures, {split} split"
    )


def open_sklearn(rest: str) -> Pictures:
    """Open `digits[:train|test]`: the first 1,197 pictures, or the last 600.

    The split is by order, since the last ones were written by other people than the first.

    Raises:
        DataError: unknown name, or scikit-learn is not installed.
    """
    name, split = _split(rest)
    if name != "digits":
        raise DataError(f"sklearn:{name} is unknown; legal is sklearn:digits[:train|test]")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "sklearn:digits needs scikit-learn: python3 -m pip install 'dreamkd[demo]'"
        ) from error
    digits = load_digits()
    part = slice(0, 1197) if split == "train" else slice(1197, None)
    return _Digits(split, digits.images[part], digits.target[part])


def _split(text: str) -> tuple[str, str]:
    """What stands before `:train` or `:test`, and which; the test split unless told."""
    head, _, tail = text.rpartition(":")
    return (head, tail) if head and tail in ("train", "test") else (text, "test")


class _Known(NamedTuple):
    files: str  # where torchvision looks, below ROOT
    splits: Mapping[str, Mapping[str, Any]]  # our split -> arguments

    def fetch(self, split: str) -> str:
        """The split's arguments as Python text."""
        return "".join(f"{key}={value!r}, " for key, value in self.splits[split].items())


_FLAG = {"train": {"train": True}, "test": {"train": False}}
_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAINVAL = {"train": {"split": "trainval"}, "test": {"split": "test"}}

TORCHVISION = {
    "CIFAR10": _Known("cifar-10-batches-py", _FLAG),
    "CIFAR100": _Known("cifar-100-python", _FLAG),
    "MNIST": _Known("MNIST/raw", _FLAG),
    "FashionMNIST": _Known("FashionMNIST/raw", _FLAG),
    "KMNIST": _Known("KMNIST/raw", _FLAG),
    "USPS": _Known("", _FLAG),
    "SVHN": _Known("", _NAME),
    "STL10": _Known("stl10_binary", _NAME),
    "GTSRB": _Known("gtsrb", _NAME),
    "Flowers102": _Known("flowers-102", _NAME),
    "Food101": _Known("food-101", _NAME),
    "DTD": _Known("dtd", _NAME),
    "Country211": _Known("country211", _NAME),
    "RenderedSST2": _Known("rendered-sst2", _NAME),
    "FGVCAircraft": _Known("fgvc-aircraft-2013b", _TRAINVAL),
    "OxfordIIITPet": _Known("oxford-iiit-pet", _TRAINVAL),
}
