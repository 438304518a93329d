"""A teacher's outputs for every view of a training run, kept for students without a teacher.

Which view a step shows is a function of (seed, step), so that the labels of a step are enough: a
row of some of each image's outputs, in half precision. Files of `SEGMENT` steps vouch for
themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from dreamkd import states
from dreamkd.errors import ConfigError, DataError, ModelError, said
from dreamkd.files import make_folders
from dreamkd.identity import RESOLVED
from dreamkd.losses import SparseOutputs

#: Student steps in one file.
SEGMENT = 64

#: Where a run keeps them.
FOLDER = "labels"

#: Settings that views and stored labels depend on.
VIEWS = ("seed", "steps", "batch_size", "student_flip", "cutmix", "temperature")

#: What else they depend on, of a run's identity.
INPUTS = ("data_pixels_sha256", "bn_prior_sha256", "teacher_sha256")

#: What of the teacher's card changes its outputs, beside its weights.
CARD = ("architecture", "mean", "std")

#: Packages whose arithmetic decides which view a step shows.
DRAWN_BY = ("dreamkd", "torch")


class Recorder:
    """Writes the labels of one step after another."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of a run; nothing is made in it before `begin`."""
        self._folder = folder / FOLDER
        self._rows: list[SparseOutputs] = []
        self._first = 0  # the step of the first row

    def begin(self, step: int) -> None:
        """Go on before `step`: the labels of the steps before it stay.

        Raises:
            DataError: one of them is missing or damaged.
            RunError: their folder cannot be made.
        """
        make_folders(self._folder)
        self._first, self._rows = step - step % SEGMENT, []
        for first in range(0, step, SEGMENT):
            rows = _read(self._folder, first)
            if len(rows) < min(SEGMENT, step - first):
                raise DataError(f"{_path(self._folder, first)} ends before step {step}")
            if first == self._first:
                self._rows = rows[: step - first]

    def add(self, step: int, outputs: SparseOutputs) -> None:
        """Keep the labels of `step`; on their device until the file is written."""
        if step - self._first == SEGMENT:
            self.flush()
            self._first, self._rows = step, []
        self._rows.append(outputs)

    def flush(self) -> None:
        """Make what was added durable.

        Raises: RunError: there is no room.
        """
        if not self._rows:
            return
        parts = zip(*self._rows, strict=True)  # of two devices after a stop
        classes, log_prob = (torch.stack([row.cpu() for row in part]) for part in parts)
        tensors = {"classes": classes, "log_prob": log_prob}
        states.write(_path(self._folder, self._first), tensors, {"first": self._first})


class Stored:
    """Reads what a `Recorder` wrote."""

    def __init__(self, folder: Path, *, device: str) -> None:
        self._folder = folder / FOLDER
        self._device = device
        self._first = -1

    def at(self, step: int) -> SparseOutputs:
        """The labels of `step`.

        Raises: DataError: they are missing or damaged.
        """
        first = step - step % SEGMENT
        if first != self._first:
            # At once: a copy for every step would wait for the one before it.
            self._rows, self._first = _read(self._folder, first, device=self._device), first
        if step - first >= len(self._rows):
            raise DataError(f"{_path(self._folder, first)} ends before step {step}")
        return self._rows[step - first]


class Kept(NamedTuple):
    """What the labels in a run's folder are."""

    outputs: int  # of each image
    sha256: str  # of what their files vouch for, which is checked as each is read


def require_same(run: Path, now: Mapping[str, Any]) -> Kept:
    """Check that the labels in a run's folder are complete and of the views of another run.

    Args: now: the facts that views and labels depend on, as `resolved.json` names them.

    Raises:
        ConfigError: they are not; the line names every difference.
        DataError: one of their files is damaged.
    """
    try:
        resolved = json.loads((run / RESOLVED).read_text(encoding="utf-8"))
        then = {**resolved["config"], **resolved}
        then |= {f"teacher_{name}": resolved["teacher"][name] for name in CARD}
        then |= {f"{name}_version": resolved["versions"][name] for name in DRAWN_BY}
        kept = int(then["store_labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else said(error)
        raise ConfigError(f"--labels {run}: is no run of dreamkd distill ({what})") from error
    if not kept or not (run / "result.json").exists():
        raise ConfigError(f"--labels {run}: is not finished, or was made without --store-labels")
    files = [_path(run / FOLDER, first) for first in range(0, int(then["steps"]), SEGMENT)]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ConfigError(f"--labels {run}: of its labels {', '.join(missing[:3])} are missing")
    now = json.loads(json.dumps(dict(now)))  # tuples as the file has them
    differing = [
        f"{name.replace('_', ' ')} is {then.get(name)!r} there and {value!r} here"
        for name, value in now.items()
        if then.get(name) != value
    ]
    if differing:
        raise ConfigError(f"--labels {run}: {'; '.join(differing)}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(_vouched(path).encode())
    return Kept(kept, digest.hexdigest())


def room(kept: int, images: int) -> int:
    """Bytes of the labels of `images` views with `kept` outputs each."""
    return 6 * kept * images


def written(run: Path) -> int:
    """Bytes of the labels that a run's folder holds."""
    return sum(path.stat().st_size for path in (run / FOLDER).glob("*.safetensors"))


def _path(folder: Path, first: int) -> Path:
    return folder / f"steps-{first:08d}.safetensors"


def _vouched(path: Path) -> str:
    """The hash that a file names of what it holds: of labels, its header alone is read."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(file.metadata()["sha256"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise DataError(f"labels of the teacher are missing: {path} is damaged") from error


def _read(folder: Path, first: int, *, device: str = "cpu") -> list[SparseOutputs]:
    """The rows of the file that begins with step `first`, on the device."""
    path = _path(folder, first)
    try:
        tensors, facts = states.read(path)
    except ModelError as error:
        raise DataError(f"labels of the teacher are missing: {error}") from error
    if facts.get("first") != first:
        raise DataError(f"{path} holds the labels of other steps")
    parts = (tensors[name].to(device) for name in ("classes", "log_prob"))
    return [SparseOutputs(*row) for row in zip(*parts, strict=True)]
