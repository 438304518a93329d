"""The formats of a run's images, and reading them back whatever the format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dreamkd import manifest
from dreamkd.errors import DataError
from dreamkd.identity import RESOLVED
from dreamkd.imagefolder import Folders, folder_names
from dreamkd.manifest import Shard
from dreamkd.samples import Sample, decode
from dreamkd.shards import Tars


class Format(Protocol):
    """Where and how the batches of a run lie; each is durable when `write` returns."""

    @property
    def names(self) -> re.Pattern[str]:
        """What a batch is called in the manifest; the group is its number."""

    def prepare(self) -> None:
        """Make the folders."""

    def path(self, k: int) -> Path:
        """The file whose SHA-256 vouches for batch `k`."""

    def write(
        self, k: int, images: Tensor, labels: Sequence[int], records: Sequence[Mapping[str, Any]]
    ) -> Shard:
        """Write batch `k` and describe it as its manifest line does."""

    def verify(self, k: int, shard: Shard) -> None:
        """Raise a `DataError` if batch `k` is not what its manifest line says."""

    def read(self, k: int) -> Iterator[Sample]:
        """Yield the samples of batch `k` in order."""

    def remove(self, k: int) -> None:
        """Remove batch `k`, which the manifest does not list; a `RunError` if it cannot."""


#: By the name that `--format` takes: the format in a run folder, for class names by label.
FORMATS: dict[str, Callable[[Path, Sequence[str]], Format]] = {
    "shards": lambda run, _: Tars(run),
    "folder": lambda run, class_names: Folders(run, folder_names(class_names)),
}


def read_run(folder: str | PathLike[str]) -> Iterator[tuple[Tensor, int, dict[str, Any]]]:
    """Yield every image of a run folder, in order, whatever its format.

    Each batch is checked against the manifest before its first image comes; a run that is not
    finished gives the batches that are. A record holds "key", "label", "class_name", the teacher's
    and the verifiers' view of the image.

    Yields: uint8 (C, H, W), C = 1 or 3; the label; the record.

    Raises:
        DataError: it is no run folder, it has no images, or one is missing or damaged.
    """
    run = Path(folder)
    if (run / RESOLVED).exists() and not (run / manifest.FILE).exists():
        raise DataError(
            f"{run} holds no images: no batch is finished yet, or its student learned from --data"
        )
    listed = manifest.read(run / manifest.FILE)
    files: Format = Folders(run) if any(map(Folders.names.fullmatch, listed)) else Tars(run)
    for k, shard in manifest.numbered(listed, files.names):
        files.verify(k, shard)
        for sample in files.read(k):
            yield decode(sample.png, name=sample.key), sample.label, sample.record
