"""What `invert` tells while it works: of all batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from dreamkd.batch import Batch
from dreamkd.engine import LOOK
from dreamkd.errors import Stopped
from dreamkd.events import OnEvent, Progress
from dreamkd.sequence import UNFINISHED


class Tally:
    """Progress over all batches: steps, images, images per second, each term, the verifiers."""

    def __init__(
        self, on_event: OnEvent, should_stop: Callable[[], bool], *, batches: int, made: int = 0
    ) -> None:
        """Begin.

        Args: batches: in all. made: of them, before this process; images and rates are its own.
        """
        self._on_event, self._should_stop = on_event, should_stop
        self._batches, self._done = batches, made
        self._images = self._steps = 0
        self._began = time.perf_counter()
        self._hits: dict[str, int] = {}

    def on_step(self, step: int, steps: int, terms: dict[str, float]) -> None:
        """Report now and then; stop when asked: the batch is then made again.

        Raises: Stopped.
        """
        self._steps = steps
        if step % LOOK == 0 and step < steps:  # of the last one `on_batch` tells more
            self._tell(step, terms)
        if self._should_stop():
            reached = f"batches made: {self._done}, left: {self._batches - self._done}"
            raise Stopped(f"{reached}; {UNFINISHED}the same command continues")

    def on_batch(self, batch: Batch) -> None:
        """A batch is complete."""
        self._done += 1
        self._images += len(batch.labels)
        for name, top1 in {"teacher": batch.predictions, **batch.verifiers}.items():
            hits = int((top1 == batch.labels).sum())
            key = f"{name} %"
            self._hits[key] = self._hits.get(key, 0) + hits
        self._tell(0, batch.terms)

    def _tell(self, step: int, terms: Mapping[str, float]) -> None:
        """Report the work so far: complete batches, and so many steps of the one at hand."""
        shown = {"images": float(self._images)}
        if self._images:
            shown["images/s"] = self._images / (time.perf_counter() - self._began)
        shown |= {**terms, **{name: 100 * n / self._images for name, n in self._hits.items()}}
        done, total = self._done * self._steps + step, self._batches * self._steps
        self._on_event(Progress("invert", done, total, "steps", shown))
