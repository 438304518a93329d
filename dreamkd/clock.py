"""When a state is saved again."""

from __future__ import annotations

import time

#: How many times as long as saving takes, until it is done again.
_RATIO = 50.0


class SaveClock:
    """Tells when it is time to save; it takes a fiftieth of the time at most.

        if clock.due():
            began = time.perf_counter()
            ...
            clock.saved(began)

    What is saved for the first time is due after `least` seconds.
    """

    def __init__(self, *, least: float = 0.0) -> None:
        """`least`: seconds from one time to the next."""
        self._least = least
        self._next = time.perf_counter() + least

    def due(self) -> bool:
        """Whether it is time again."""
        return time.perf_counter() > self._next

    def saved(self, began: float) -> None:
        """It is done; `began`: `time.perf_counter()` before."""
        now = time.perf_counter()
        self._next = now + max(self._least, _RATIO * (now - began))
