"""Labelled images in memory: what a student learns from, or is measured on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dreamkd.data import Preprocessing, check_classes, check_labels, open_images, stack
from dreamkd.engine import spare_bytes
from dreamkd.models import Classifier

#: Folders in which a run keeps its images, by format.
_LAYOUTS = (("shards",), ("images", "records"))


class Examples(NamedTuple):
    """What a student learns from, or is measured on."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,), on the CPU

    def near(self, device: str) -> Self:
        """The same, with the images on the device where they take little of its memory."""
        if self.images.nbytes > spare_bytes(device):
            return self
        return self._replace(images=self.images.to(device))

    def draw(self, index: Tensor, *, device: str) -> Tensor:
        """The images of `index`, int64 (B,) on the CPU, on the device: uint8 (B, C, H, W).

        The host does not wait for what the device computes.
        """
        images = self.images[index.to(self.images.device, non_blocking=True)]
        if images.device == torch.device(device):
            return images
        return images.pin_memory().to(device, non_blocking=True)


class Labelled(NamedTuple):
    """A data set in memory."""

    examples: Examples
    source: str


def read_labelled(spec: str | None, teacher: Classifier, *, crop_pct: float) -> Labelled | None:
    """Labelled images at the teacher's input size, all of them; None without `spec`.

    Raises: DataError: not readable, or of other classes.
    """
    if spec is None:
        return None
    how = replace(Preprocessing.of(teacher.card), crop_pct=crop_pct)
    image_set = open_images(spec, preprocessing=how)
    check_classes(image_set, teacher.card)
    images, labels = stack(image_set)
    check_labels(labels, teacher.card, image_set)
    return Labelled(Examples(images, labels), image_set.source)


def is_data_free(spec: str) -> bool:
    """Whether `spec` is a run folder, or images in one, that dreamkd synthesised without real ones.

    They are not where they competed with a student that had learned from real images. `open_images`
    has checked the images against the run's manifest.
    """
    path = Path(spec)
    inside = path if path.name in ("shards", "images") else path.parent  # also a tar or a glob
    folder = inside.parent if inside.name == "shards" or path.name == "images" else path
    # Without records/, a folder called images/ is read as anyone's class folders.
    layouts = _LAYOUTS[1:] if path.name == "images" else _LAYOUTS
    try:
        resolved = json.loads((folder / "resolved.json").read_text(encoding="utf-8"))
        kept = any(all((folder / part).is_dir() for part in parts) for parts in layouts)
        free = resolved.get("student_data_free", True) and not resolved["config"].get("data")
        return kept and free
    except (OSError, ValueError, KeyError, AttributeError):
        return False
