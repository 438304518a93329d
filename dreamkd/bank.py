"""The synthesised images of a run, batch by batch; the manifest vouches for them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Container, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dreamkd import contactsheet
from dreamkd.ahead import ahead, all_of
from dreamkd.batch import Batch
from dreamkd.clock import SaveClock
from dreamkd.errors import DataError, RunError, said
from dreamkd.events import Hint, OnEvent, ignore
from dreamkd.files import withheld
from dreamkd.formats import FORMATS, Format
from dreamkd.manifest import Shard
from dreamkd.runs import Run
from dreamkd.samples import decode, joined

_SHEET_COLUMNS, _SHEET_IMAGES = 10, 100


class Bank:
    """Append-only batches of uint8 images in a run folder.

    What `add` is given is encoded and written by one thread of its own while the caller goes on;
    the order of the writes is that of the calls. Everything else waits for it, so that a caller
    sees what it added. PNG encoding, hashing and writing release the interpreter lock, and the
    thread uses numpy: torch would start a second set of threads beside those of the optimisation.

        with Bank(run) as bank:
            bank.add(0, batch, start=0, class_names=())

    Leaving waits for the pending batch, also after an exception: what was made is kept.
    """

    def __init__(
        self,
        run: Run,
        *,
        files: Format | None = None,
        page: bool = True,
        on_event: OnEvent = ignore,
    ) -> None:
        """Open it; nothing is read but the manifest.

        Args:
            files: the format of the batches; None for shards.
            page: whether `add` renews the contact sheet, in a fiftieth of the time at most; not
                where others add to the same run.
        Raises: RunError: the folder of the batches cannot be made.
        """
        self._run = run
        self._files = files or FORMATS["shards"](run.folder, ())
        self._files.prepare()
        self._page = SaveClock() if page else None
        self._on_event = on_event
        # Of a line no more stays in memory than this, so that a run of days does not grow.
        self._hashes: dict[int, int] = {}
        for line in run.lines:
            self._remember(line)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="dreamkd-bank")
        self._pending: Future[None] | None = None
        self.last = -1  # the batch that was written last, since it was opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.flush()
        except Exception as error:
            if kind is None:
                raise
            # The caller's own exception goes on; this one would hide it.
            self._on_event(Hint(f"the last batch was not kept: {error}"))
        finally:
            self._worker.shutdown()

    def flush(self) -> None:
        """Wait until the batch given to `add` is durable.

        Raises: what writing it raised, once: RunError: no room, or the folder is not writable; what
            was there before is intact.
        """
        if self._pending is not None:
            pending = self._pending
            pending.exception()  # an interrupt while waiting leaves it pending
            self._pending = None
            pending.result()

    def held(self, batches: Iterable[int]) -> list[bool]:
        """Whether each is there and intact; a damaged one is named and counts as missing.

        Raises: RunError: one cannot be read, so that nobody knows; nothing is made in its place.
        """
        self.flush()
        shards = {line["batch"]: Shard.of(line) for line in self._run.lines}
        wanted = list(batches)
        listed = [k for k in wanted if k in shards]
        damage = all_of(
            lambda k: self._damage(k, shards[k]),
            listed,
            phase="check",
            unit="batches",
            on_event=self._on_event,
        )
        intact = set(listed)
        for k, error in zip(listed, damage, strict=True):
            if error is not None:
                self._on_event(Hint(f"batch {k} is made again: {error}"))
                intact.remove(k)
        return [k in intact for k in wanted]

    def add(self, k: int, batch: Batch, *, start: int, class_names: Sequence[str]) -> None:
        """Have batch `k` written, then its manifest line, then the page it is on.

        Returns at once, or when the batch before is durable.

        Args:
            batch: which does not change any more.
            start: number of its first image in the run.
            class_names: by label; empty where there are none.
        Raises: as `flush`, about the batch before; then this one is not written either, so that the
            manifest never skips one.
        """
        self.flush()
        # Here and not in the thread: it asks torch.
        labels, line = batch.labels.tolist(), {"start": start, **batch.summary()}
        records = batch.records(start=start, class_names=class_names)
        self._pending = self._worker.submit(self._keep, k, batch.images, labels, records, line)

    def read(self, batches: Iterable[int]) -> Generator[tuple[Tensor, Tensor]]:
        """Batches that are held, in the order given: uint8 (B, C, H, W) and int64 (B,).

        They are decoded a little ahead, while others may be added.

        Raises: DataError: one is missing or damaged.
        """
        self.flush()
        yield from ahead(self._decoded, batches)

    def _decoded(self, k: int) -> tuple[Tensor, Tensor]:
        samples = list(self._files.read(k))
        images = [decode(sample.png, name=sample.key) for sample in samples]
        return joined(images), torch.tensor([sample.label for sample in samples])

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Manifest lines in order of their batches."""
        self.flush()
        last = {line["batch"]: line for line in self._run.lines}
        return [last[k] for k in sorted(last)]

    def tidy(self) -> None:
        """Remove batches that the manifest does not list: what killed processes left.

        Before anything is made, since others may then write what they held; by one process alone.

        Raises: RunError: a file cannot be removed.
        """
        self.flush()
        self._remove_all_but(self._hashes.keys())

    def complete(self, count: int) -> None:
        """Bring the manifest and the page of `count` batches to what any run of them ends with.

        The manifest lists each batch once, in order, whoever made it and when; a batch that it does
        not list, of a longer run that was killed, is removed, since nobody vouches for it. The
        page, `contact-sheet.png`, shows images of the last batches sorted by class, those that a
        generator makes when it has learned; while `add` renews it, batches that are lost, or made
        by others, are missing on it.

        Raises: RunError: a batch is not there, such as that of a worker in another folder; or a
            file cannot be written, or removed.
        """
        lines = self.lines
        if missing := {*range(count)} - {line["batch"] for line in lines}:
            raise RunError(
                f"{self._run.folder} lacks batch {min(missing)}, which was made; all workers need "
                "the same folder: run the same command again"
            )
        self._run.keep_lines(lines)
        for line in lines:
            self._remember(line)
        self._remove_all_but(self._hashes.keys())
        self._write_contact_sheet()

    def _remove_all_but(self, kept: Container[int]) -> None:
        folder = self._files.path(0).parent
        try:
            found = sorted(folder.iterdir())
        except OSError as error:
            raise RunError(
                f"cannot look into {folder}: {said(error)}; make it readable, then run the same "
                "command again"
            ) from error
        for path in found:
            name = self._files.names.fullmatch(path.name)
            if name is not None and int(name[1]) not in kept:
                self._files.remove(int(name[1]))

    def _damage(self, k: int, shard: Shard) -> DataError | None:
        try:
            self._files.verify(k, shard)
        except DataError as error:
            if withheld(error):
                raise RunError(
                    f"{error}; make it readable, then run the same command again"
                ) from error
            return error
        return None

    def _remember(self, line: Mapping[str, Any]) -> None:
        self._hashes[line["batch"]] = _hash(line)

    def _keep(
        self,
        k: int,
        images: Tensor,
        labels: list[int],
        records: Sequence[Mapping[str, Any]],
        line: Mapping[str, Any],
    ) -> None:
        """What the thread does for one batch."""
        shard = self._files.write(k, images, labels, records)
        entry = {"batch": k, **shard.to_json(), **line}
        if self._hashes.get(k) != _hash(entry):  # another PNG encoder's: the last line counts
            self._run.add_line(entry)
            self._remember(entry)
        self.last, self._run.advanced = k, True
        if self._page is not None and self._page.due():
            began = time.perf_counter()
            self._write_contact_sheet()
            self._page.saved(began)

    def _write_contact_sheet(self) -> None:
        images: list[np.ndarray] = []
        labels: list[int] = []
        for k in sorted(self._hashes, reverse=True):
            with suppress(DataError):  # missing or damaged
                for sample in islice(self._files.read(k), _SHEET_IMAGES - len(images)):
                    images.append(contactsheet.tile(decode(sample.png, name=sample.key).numpy()))
                    labels.append(sample.label)
            if len(images) == _SHEET_IMAGES:
                break
        order = np.argsort(labels, kind="stable")
        path = self._run.folder / "contact-sheet.png"
        contactsheet.write(path, np.stack(images)[order], columns=_SHEET_COLUMNS)


def _hash(line: Mapping[str, Any]) -> int:
    """Of a manifest line as it is written, 64 bits."""
    text = json.dumps(line, sort_keys=True).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8])
