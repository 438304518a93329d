"""What is remembered of the statistics of a run's batches, with `--bn-momentum`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dreamkd.errors import RunError
from dreamkd.moments import Average, Moments


class MovingAverage:
    """The moments of former batches; each new batch moves it by a share of 1 - momentum.

    average <- momentum average + (1 - momentum) moments
    """

    def __init__(self, momentum: float) -> None:
        """Nothing is remembered yet; with a momentum of 0 nothing ever is."""
        self._momentum = momentum
        self._average: Average | None = None
        self._weightless: Average | None = None

    def __bool__(self) -> bool:
        """Whether it remembers anything of the batches that it is given."""
        return self._momentum > 0

    def begin(self, like: Moments) -> None:
        """Give averages of this form; what is remembered stays."""
        self._weightless = Average(like, 0.0)

    def former(self, *, counts: bool) -> Average | None:
        """What goes into the statistics of a batch; None where nothing is ever remembered.

        Where there is nothing, or it does not count, an average without weight: the compiler sees
        one kind of call.
        """
        return (self._average if counts else None) or self._weightless

    def add(self, moments: Moments) -> None:
        """Move towards the moments of a batch, of its finished images."""
        if self._average is not None:
            moments = self._average.including(moments)
        self._average = Average(moments, self._momentum)

    def state(self) -> dict[str, Tensor]:
        """Named tensors; empty if there is nothing."""
        return self._average.moments._asdict() if self._average is not None else {}

    def restore(self, state: Mapping[str, Tensor], *, device: str) -> None:
        """Continue from what `state` gave; from nothing if it is empty.

        Raises: RunError: it is of a version that kept each layer by itself.
        """
        self._average = None
        if not state:
            return
        if set(state) != set(Moments._fields):
            raise RunError("the average of statistics is of an older version; choose another --out")
        moments = Moments(**{name: value.to(device) for name, value in state.items()})
        self._average = Average(moments, self._momentum)
