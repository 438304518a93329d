"""Batches that depend on those before it: what is handed on, kept so that a run can go on.

A generator learns from batch to batch, and a moving average remembers. Such a run makes its batches
in order and now and then saves what it hands on; any other can make any batch at any time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from dreamkd.bank import Bank
from dreamkd.config import ImageConfig
from dreamkd.config.options import AUTO
from dreamkd.events import Hint, OnEvent
from dreamkd.images import IMAGES
from dreamkd.runs import Run
from dreamkd.synthesis import Synthesiser

_STATE = "images"

#: How many times as long as saving a state takes, until it is saved again.
SAVE_RATIO = 50.0

#: What is said of a stop between two steps of a batch, which is then made again.
UNFINISHED = "an unfinished batch of images begins anew; "


def sequential(config: ImageConfig) -> bool:
    """Whether a batch depends on those before it, by settled settings."""
    return IMAGES[config.images].sequential or config.bn_momentum not in (AUTO, 0)


class Chain:
    """The batches of a run in their order, and what each hands on to the next.

    Batches made since the state was saved are made again, to the same bytes, if the process is
    killed: writing what a generator carries after each would take as long as making some.

        with Chain(run, bank, on_event=on_event) as chain:
            for k in chain.begin(synthesiser, held): ...; bank.add(k, ...); chain.made(k)
    """

    def __init__(self, run: Run, bank: Bank, *, on_event: OnEvent) -> None:
        """Nothing is read before `begin`."""
        self._run, self._bank, self._on_event = run, bank, on_event
        self._synthesiser: Synthesiser | None = None  # once there is something to hand on
        self._following = self._saved = 0  # the batch that what is handed on goes to
        self._next_save = 0.0

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
        if not sequential(synthesiser.config):
            return [k for k, there in enumerate(held) if not there]
        saved = self._run.load_state(_STATE, on_event=self._on_event)
        following = 0 if saved is None else int(saved[1]["next"])
        if not all(held[:following]):
            self._on_event(Hint("a lost batch needs those before it: all are made again"))
            following, saved = 0, None
        synthesiser.restore({} if saved is None else saved[0])
        self._synthesiser, self._following, self._saved = synthesiser, following, following
        return list(range(following, len(held)))

    def made(self, k: int) -> None:
        """Batch `k` is in the bank; saving takes a fiftieth of the time at most."""
        self._following = k + 1
        if self._synthesiser is not None and time.perf_counter() > self._next_save:
            self.save()

    def save(self) -> None:
        """Make durable every batch that was made, and then what goes on from the last of them."""
        began = time.perf_counter()
        self._bank.flush()
        if self._synthesiser is None or self._following == self._saved:
            return
        if self._bank.last != self._following - 1:
            return  # it could not be written, which was said
        facts = {"next": self._following}
        self._run.save_state(_STATE, self._synthesiser.state(), facts)
        self._saved = self._following
        now = time.perf_counter()
        self._next_save = now + SAVE_RATIO * (now - began)

    def end(self) -> None:
        """All batches are there, and there will be no others: what goes on is no longer kept."""
        self._bank.flush()
        self._synthesiser = None
        self._run.drop_state(_STATE)
