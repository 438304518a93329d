"""The synthesised images of a run, batch by batch; the manifest vouches for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dreamkd import contactsheet
from dreamkd.errors import DataError
from dreamkd.events import Hint, OnEvent, ignore
from dreamkd.formats import FORMATS, Format
from dreamkd.runs import Run
from dreamkd.samples import Shard, decode

_SHEET_COLUMNS, _SHEET_IMAGES = 10, 100


class Bank:
    """Append-only batches of uint8 images in a run folder."""

    def __init__(
        self, run: Run, *, files: Format | None = None, on_event: OnEvent = ignore
    ) -> None:
        """`files`: the format of the batches; None for shards.

        Raises: RunError: the folder of the batches cannot be made.
        """
        self._run = run
        self._files = files or FORMATS["shards"](run.folder, ())
        self._files.prepare()
        self._on_event = on_event
        self._lines = {line["batch"]: line for line in run.lines}

    def holds(self, k: int) -> bool:
        """Whether batch `k` is there and intact; a damaged one is named and counts as missing."""
        if k not in self._lines:
            return False
        try:
            self._files.verify(k, _shard(self._lines[k]))
        except DataError as error:
            self._on_event(Hint(f"batch {k} is made again: {error}"))
            return False
        return True

    def add(
        self,
        k: int,
        images: Tensor,
        labels: Tensor,
        *,
        start: int,
        facts: Sequence[Mapping[str, Any]],
        line: Mapping[str, Any],
    ) -> None:
        """Write batch `k`, then its manifest line.

        Args:
            images: uint8 (B, C, H, W). labels: int64 (B,).
            start: number of the batch's first image in the run; images are keyed by it.
            facts: one record per image. line: what the manifest says of the batch.
        Raises: RunError: no room, or the folder is not writable; what was there before is intact.
        """
        records = [{"key": f"{start + i:08d}", **fact} for i, fact in enumerate(facts)]
        shard = self._files.write(k, images, labels.tolist(), records)
        entry = {"batch": k, "start": start, **shard.to_json(), **line}
        if self._lines.get(k) != entry:  # remade by another PNG encoder: the last line counts
            self._lines[k] = entry
            self._run.add_line(entry)

    def read(self, k: int) -> tuple[Tensor, Tensor]:
        """Batch `k`: uint8 (B, C, H, W) and int64 (B,)."""
        samples = list(self._files.read(k))
        images = torch.stack([decode(sample.png, name=sample.key) for sample in samples])
        return images, torch.tensor([sample.label for sample in samples])

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Manifest lines in order of their batches."""
        return [self._lines[k] for k in sorted(self._lines)]

    def write_contact_sheet(self) -> None:
        """Put the first images on one page, sorted by class: `contact-sheet.png`.

        While lost batches are made again, the page is incomplete.
        """
        shown: list[tuple[Tensor, Tensor]] = []
        for k in sorted(self._lines):
            enough = sum(len(labels) for _, labels in shown) >= _SHEET_IMAGES
            if not enough:
                with suppress(DataError):  # missing or damaged
                    shown.append(self.read(k))
        images, labels = (torch.cat(part)[:_SHEET_IMAGES] for part in zip(*shown, strict=True))
        order = labels.argsort(stable=True)
        path = self._run.folder / "contact-sheet.png"
        contactsheet.write(path, images[order], columns=_SHEET_COLUMNS)

    def refresh_contact_sheet(self, k: int) -> None:
        """Write the page again if batch `k`, just added, is on it."""
        if sum(line["count"] for line in self.lines if line["batch"] < k) < _SHEET_IMAGES:
            self.write_contact_sheet()


def _shard(line: Mapping[str, Any]) -> Shard:
    return Shard(line["shard"], line["count"], line["sha256"], line["pixels_sha256"])
