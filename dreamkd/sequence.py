"""The batches of a run, one after another: each is made, kept, and may hand something on.

A generator learns from batch to batch, and a moving average remembers. Such a run makes its batches
in order and now and then saves what it hands on; any other can make any batch at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from torch import Tensor

from dreamkd.bank import Bank
from dreamkd.batch import Batch, OnStep
from dreamkd.clock import SaveClock
from dreamkd.config import ImageConfig
from dreamkd.config.options import AUTO
from dreamkd.events import Hint, OnEvent
from dreamkd.images import IMAGES
from dreamkd.randomness import generator_for
from dreamkd.runs import Run
from dreamkd.synthesis import Synthesiser

_STATE = "images"

#: What is said of a stop between two steps of a batch, which is then made again.
UNFINISHED = "an unfinished batch of images begins anew; "

#: What to do where the device has no room for a batch.
SMALLER = "lower --image-chunk, in another --out"


def sequential(config: ImageConfig) -> bool:
    """Whether a batch depends on those before it, by settled settings."""
    return IMAGES[config.images].sequential or config.bn_momentum not in (AUTO, 0)


class Chain:
    """The batches of a run in their order, and what each hands on to the next.

    Batches made since the state was saved are made again, to the same bytes, if the process is
    killed: writing what a generator carries after each would take as long as making some.

        with Chain(run, bank, seed=seed, on_event=on_event) as chain:
            for k in chain.begin(synthesiser, held):
                batch = chain.make(k, labels, on_step=on_step)
                chain.keep(k, batch, start=start)
    """

    def __init__(self, run: Run, bank: Bank, *, seed: int, on_event: OnEvent) -> None:
        """Nothing is read before `begin`; `seed`: of the images."""
        self._run, self._bank, self._on_event = run, bank, on_event
        self._seed = seed
        self._hands_on = False
        self._following = self._saved = 0  # the batch that what is handed on goes to
        self._kept = 0  # the batch after those that the bank was given
        self._clock = SaveClock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.save()
        elif issubclass(kind, Exception):  # which goes on; one of this would hide it
            with suppress(Exception):
                self.save()

    def begin(self, synthesiser: Synthesiser, held: Sequence[bool]) -> list[int]:
        """The batches to make, in order; the synthesiser is put where the first of them begins.

        A batch that is there is made again where a later one needs what it handed on: when the run
        was killed before it was saved, or lost a shard that it had gone past.

        Args: held: of every batch, whether it is there and intact.
        """
        self._synthesiser = synthesiser
        self._hands_on = sequential(synthesiser.config)
        if not self._hands_on:
            return [k for k, there in enumerate(held) if not there]
        saved = self._run.load_state(_STATE, on_event=self._on_event)
        following = 0 if saved is None else int(saved[1]["next"])
        if not all(held[:following]):
            self._on_event(Hint("a lost batch needs those before it: all are made again"))
            following, saved = 0, None
        synthesiser.restore({} if saved is None else saved[0])
        self._following = self._kept = self._saved = following
        return list(range(following, len(held)))

    def make(self, k: int, labels: Tensor, *, on_step: OnStep, compete: bool = True) -> Batch:
        """Synthesise batch `k` of those that `begin` named; arguments as of `Synthesiser.batch`."""
        batch = self._synthesiser.batch(
            labels,
            generator=generator_for(self._seed, "batch", k),
            compete=compete,
            name=f"batch {k}",
            on_step=on_step,
        )
        self._following = k + 1
        return batch

    def keep(self, k: int, batch: Batch, *, start: int) -> None:
        """Have batch `k` written, and now and then save what goes on from it.

        Args: start: number of its first image in the run.
        Raises: RunError: as of `Bank.add`.
        """
        class_names = self._synthesiser.teacher.card.class_names
        self._bank.add(k, batch, start=start, class_names=class_names)
        self._kept = k + 1
        if self._hands_on and self._clock.due():
            self.save()

    def save(self) -> None:
        """Make durable every batch that was made, and then what goes on from the last of them."""
        began = time.perf_counter()
        self._bank.flush()
        if not self._hands_on or self._following == self._saved:
            return
        if not self._bank.last + 1 == self._kept == self._following:
            return  # the last batch could not be written, and will be made again
        facts = {"next": self._following}
        self._run.save_state(_STATE, self._synthesiser.state(), facts)
        self._saved = self._following
        self._clock.saved(began)

    def end(self) -> None:
        """All batches are there, and there will be no others: what goes on is no longer kept."""
        self._bank.flush()
        self._hands_on = False
        self._run.drop_state(_STATE)
