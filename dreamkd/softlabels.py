"""A teacher's outputs for every view of a training run, kept for students without a teacher.

Which view a step shows is a function of (seed, step), so that the labels of a step are enough: a
row of each image's largest outputs, in half precision. Files of `SEGMENT` steps vouch for
themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dreamkd import states
from dreamkd.errors import ConfigError, DataError, ModelError
from dreamkd.files import make_folders
from dreamkd.losses import Top

#: Student steps in one file.
SEGMENT = 64

#: Where a run keeps them.
FOLDER = "labels"

#: Settings that views and stored labels depend on.
VIEWS = ("seed", "steps", "batch_size", "flip", "cutmix", "temperature")


class Recorder:
    """Writes the labels of one step after another."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of a run.

        Raises: RunError: it cannot be made.
        """
        self._folder = folder / FOLDER
        make_folders(self._folder)
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
        self._folder = folder / FOLDER
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


def require_same(run: Path, now: Mapping[str, Any]) -> None:
    """Check that the labels in a run's folder are complete and of the views of another run.

    Args: now: the facts that views and labels depend on, as `resolved.json` names them.

    Raises: ConfigError: they are not; the line names every difference.
    """
    try:
        resolved = json.loads((run / "resolved.json").read_text(encoding="utf-8"))
        then = {**resolved["config"], **resolved}
        kept = then["store_labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--labels {run}: is no run of dreamkd distill ({error!r})") from error
    if not kept or not (run / "result.json").exists():
        raise ConfigError(f"--labels {run}: is not finished, or was made without --store-labels")
    differing = [
        f"{name.replace('_', ' ')} is {then.get(name)!r} there and {value!r} here"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if differing:
        raise ConfigError(f"--labels {run}: {'; '.join(differing)}")


def _path(folder: Path, first: int) -> Path:
    return folder / f"steps-{first:08d}.safetensors"


def _read(folder: Path, first: int) -> Top:
    path = _path(folder, first)
    try:
        tensors, _ = states.read(path)
    except ModelError as error:
        raise DataError(f"labels of the teacher are missing: {error}") from error
    return Top(tensors["classes"], tensors["log_prob"])
