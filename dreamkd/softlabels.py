"""A teacher's outputs for every view of a training run, kept for students without a teacher.

Which view a step shows is a function of (seed, step), so that the labels of a step are enough: a
row of each image's largest outputs, in half precision. Files of `SEGMENT` steps vouch for
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dreamkd import states
from dreamkd.errors import DataError, ModelError
from dreamkd.files import make_folders
from dreamkd.losses import Top

#: Student steps in one file.
SEGMENT = 64


class Recorder:
    """Writes the labels of one step after another."""

    def __init__(self, folder: Path) -> None:
        """`folder`: inside an existing one.

        Raises: RunError: it cannot be made.
        """
        make_folders(folder)
        self._folder = folder
        self._rows: list[Top] = []
        self._first = 0  # the step of the first row

    def begin(self, step: int) -> None:
        """Go on before `step`: what the file of its segment holds stays.

        Raises: DataError: that file is damaged.
        """
        self._first = step - step % SEGMENT
        self._rows = []
        if step > self._first:
            kept = _read(self._folder, self._first)
            self._rows = [Top(*row) for row in zip(*kept, strict=True)][: step - self._first]

    def add(self, step: int, top: Top) -> None:
        """Keep the labels of `step`; on their device until the file is written."""
        if step - self._first == SEGMENT:
            self.flush()
            self._first, self._rows = step, []
        self._rows.append(top)

    def flush(self) -> None:
        """Make what was added durable.

        Raises: RunError: there is no room.
        """
        if not self._rows:
            return
        classes, log_prob = (torch.stack(part).cpu() for part in zip(*self._rows, strict=True))
        tensors = {"classes": classes, "log_prob": log_prob}
        states.write(_path(self._folder, self._first), tensors, {"first": self._first})


class Stored:
    """Reads what a `Recorder` wrote."""

    def __init__(self, folder: Path, *, device: str) -> None:
        self._folder = folder
        self._device = device
        self._first = -1

    def at(self, step: int) -> Top:
        """The labels of `step`.

        Raises: DataError: they are missing or damaged.
        """
        first = step - step % SEGMENT
        if first != self._first:
            self._segment, self._first = _read(self._folder, first), first
        return Top(*(part[step - first].to(self._device) for part in self._segment))


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of `now` the stored labels were not made for; empty if nothing.

    Args: facts on which the views and the teacher's outputs depend, by name.
    """
    return "; ".join(
        f"{name.replace('_', ' ')} is {then.get(name)!r} there and {value!r} here"
        for name, value in now.items()
        if then.get(name) != value
    )


def _path(folder: Path, first: int) -> Path:
    return folder / f"steps-{first:08d}.safetensors"


def _read(folder: Path, first: int) -> Top:
    path = _path(folder, first)
    try:
        tensors, _ = states.read(path)
    except ModelError as error:
        raise DataError(f"labels of the teacher are missing: {error}") from error
    return Top(tensors["classes"], tensors["log_prob"])
