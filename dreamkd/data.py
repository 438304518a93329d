"""Labelled images for evaluation and training, whatever their container."""

from __future__ import annotations

import glob
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamkd.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the uint8 image that a network sees before normalisation."""

    input_size: tuple[int, int, int]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0


_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def preprocess(picture: Image.Image, how: Preprocessing) -> Tensor:
    """Resize the short side to size / crop_pct, crop the centre: uint8 (C, H, W)."""
    channels, height, width = how.input_size
    picture = picture.convert("L" if channels == 1 else "RGB")
    short = int(min(height, width) / how.crop_pct)
    w, h = picture.size
    if min(w, h) != short:
        scale = short / min(w, h)
        size = (max(short, round(w * scale)), max(short, round(h * scale)))
        picture = picture.resize(size, _FILTERS[how.interpolation])
    w, h = picture.size
    left, top = round((w - width) / 2), round((h - height) / 2)
    picture = picture.crop((left, top, left + width, top + height))
    array = np.asarray(picture, dtype=np.uint8)
    return torch.from_numpy(array.reshape(height, width, channels).copy()).permute(2, 0, 1)


class ImageSet:
    """A map-style data set of (uint8 image (C, H, W), label)."""

    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise NotImplementedError


class _TarFolders(ImageSet):
    def __init__(self, paths: Sequence[str], how: Preprocessing) -> None:
        self.how = how
        members = []
        for path in paths:
            with tarfile.open(path, "r:") as tar:
                for m in tar:
                    if m.isfile():
                        members.append((path, m.offset_data, m.size, m.name.split("/")[-2]))
        self.class_names = tuple(sorted({m[3] for m in members}))
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, offset, size, name = self.members[index]
        with open(path, "rb") as file:
            file.seek(offset)
            picture = Image.open(io.BytesIO(file.read(size)))
        return preprocess(picture, self.how), self.class_names.index(name)


class _Digits(ImageSet):
    def __init__(self, part: str, how: Preprocessing) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        cut = slice(0, 1197) if part == "train" else slice(1197, None)
        self.pixels = np.rint(digits.images[cut] * (255 / 16)).astype(np.uint8)
        self.labels = digits.target[cut]
        self.class_names = tuple(str(d) for d in range(10))
        self.how = how

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index])
        return preprocess(picture, self.how), int(self.labels[index])


def open_images(spec: str, *, preprocessing: Preprocessing) -> ImageSet:
    """Open a data set by its specification."""
    if spec.startswith("sklearn:digits"):
        return _Digits(spec.partition("digits")[2].lstrip(":") or "test", preprocessing)
    paths = sorted(glob.glob(spec))
    if not paths:
        raise DataError(f"no data at {spec}")
    return _TarFolders(paths, preprocessing)


def stack(images: ImageSet) -> tuple[Tensor, Tensor]:
    """The whole set in memory: uint8 (N, C, H, W), int64 (N,)."""
    pairs = [images[i] for i in range(len(images))]
    return torch.stack([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
