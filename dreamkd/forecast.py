"""How long a job still takes that does work of several kinds in turn."""

from __future__ import annotations

#: Share of the newest measurement in what a unit of work is taken to cost.
_NEWEST = 0.3


class Forecast:
    """Seconds that are left, from what each kind of work has taken so far.

        forecast.ahead = {"batches": 41, "steps": 3024}
        forecast.reached("batches", 1, 60.0)
        forecast.reached("steps", 25, 24.0)
        forecast.within("batches", 0.5)  # half of the next one is done
        forecast.left()

    The newest measurements count most: the first of a kind holds what is done only once.
    """

    def __init__(self) -> None:
        self.ahead: dict[str, float] = {}  # kind of work -> its units that are still to do
        self._within: dict[str, float] = {}  # kind of work -> share of its next unit
        self._costs: dict[str, float] = {}  # kind of work -> seconds of a unit
        self._reached: dict[str, tuple[float, float]] = {}  # kind of work -> units, seconds

    def expect(self, **costs: float) -> None:
        """Take a unit of each kind of work to cost so many seconds until it is known better."""
        self._costs |= costs

    def reached(self, kind: str, units: float, seconds: float) -> None:
        """So many units of a kind are done, in so many seconds, since the job began."""
        self._within[kind] = 0.0
        before, spent = self._reached.get(kind, (0.0, 0.0))
        self._reached[kind] = (units, seconds)
        if units > before:
            new = (seconds - spent) / (units - before)
            old = self._costs.get(kind, new)
            self._costs[kind] = old + _NEWEST * (new - old)

    def within(self, kind: str, share: float) -> None:
        """Such a share is done of the next unit of a kind, in [0, 1], until it is reached."""
        self._within[kind] = share

    def left(self) -> float | None:
        """Seconds; None while some of what is ahead has never been measured."""
        ahead = {kind: units for kind, units in self.ahead.items() if units}
        if not ahead.keys() <= self._costs.keys():
            return None
        return sum(
            (units - self._within.get(kind, 0.0)) * self._costs[kind]
            for kind, units in ahead.items()
        )
