"""Labelled images in memory: what a student learns from, or is measured on."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from dreamkd.data import Preprocessing, check_classes, check_labels, open_images, stack
from dreamkd.engine import require_memory, spare_bytes
from dreamkd.events import OnEvent, ignore
from dreamkd.identity import RESOLVED
from dreamkd.manifest import run_of
from dreamkd.models import Classifier
from dreamkd.samples import pixels_sha256


class Examples(NamedTuple):
    """What a student learns from, or is measured on."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,), on the CPU

    def sha256(self) -> str:
        """Hash of the pixels and the labels."""
        return pixels_sha256(self.images, self.labels.tolist())

    def near(self, device: str) -> Self:
        """The same, with the images on the device where they take little of its memory."""
        if self.images.nbytes > spare_bytes(device):
            return self
        return self._replace(images=self.images.to(device))

    def draw(self, index: Tensor, *, device: str) -> Tensor:
        """The images of `index`, int64 (B,) on the CPU, on the device: uint8 (B, C, H, W).

        The host does not wait for what the device computes.
        """
        if self.images.device.type != "cpu" or device == "cpu":
            return self.images[index.to(self.images.device, non_blocking=True)]
        pinned = torch.empty(
            (len(index), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True
        )
        return torch.index_select(self.images, 0, index, out=pinned).to(device, non_blocking=True)


class Labelled(NamedTuple):
    """A data set in memory."""

    examples: Examples
    source: str
    synthesised: bool  # all of them by runs, whose manifests list them as they are


def read_labelled(
    spec: str | None,
    teacher: Classifier,
    *,
    copies: int = 1,
    on_event: OnEvent = ignore,
    **given: Any,
) -> Labelled | None:
    """Labelled images at the teacher's input size, all of them; None without `spec`.

    Args:
        copies: processes of this machine that are about to read the same.
        given: fields of `Preprocessing` that are not the teacher's own.

    Raises:
        DataError: not readable, or of other classes.
        RunError: there is no memory for them.
    """
    if spec is None:
        return None
    how = Preprocessing.of(teacher.card)
    image_set = open_images(spec, preprocessing=how, on_event=on_event)
    image_set = image_set.wanted_by(teacher.card, **given)
    image_set = image_set.labelled_by(teacher.card, on_event=on_event)
    check_classes(image_set, teacher.card)
    advice = f"{spec} holds too many"
    if copies > 1:
        advice += f" for {copies} workers of one machine"
    require_memory(copies * len(image_set), teacher.card.input_size, advice=advice)
    images, labels = stack(image_set, on_event=on_event)
    check_labels(labels, teacher.card, image_set)
    synthesised = image_set.pictures.synthesised
    return Labelled(Examples(images, labels), image_set.source, synthesised)


def is_data_free(spec: str) -> bool:
    """Whether the runs that `spec` names made their images without real ones.

    They did not where images competed with a student that had learned from real ones.

    Args: spec: of a set that is `Labelled.synthesised`: a run folder, its shards/ or images/, a tar
        in it, or a glob of tars.
    """
    paths = [Path(spec)] if Path(spec).exists() else [Path(name) for name in glob.glob(spec)]
    return bool(paths) and all(map(_is_data_free, set(map(run_of, paths))))


def _is_data_free(run: Path) -> bool:
    try:
        resolved = json.loads((run / RESOLVED).read_text(encoding="utf-8"))
        free = resolved.get("student_data_free", True) and not resolved["config"].get("data")
        return bool(free)
    except (OSError, ValueError, KeyError, AttributeError):
        return False
