"""What workflows say while they work. They print nothing: the caller passes `on_event`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Note:
    """One line a person should read: a choice made, a fallback taken."""

    text: str


@dataclass(frozen=True)
class Hint:
    """One line of advice: the run goes on, but the user may have meant something else."""

    text: str


@dataclass(frozen=True)
class Progress:
    """How far a phase has come; `terms` are the newest values worth showing.

    `left`: seconds until the whole job ends, where a job of several phases can foresee it.
    """

    phase: str
    done: int
    total: int
    unit: str
    terms: Mapping[str, float] = field(default_factory=dict)
    left: float | None = None


@dataclass(frozen=True)
class Finished:
    """A phase is over, after `seconds` of work by this process."""

    phase: str
    seconds: float


Event = Note | Hint | Progress | Finished
OnEvent = Callable[[Event], None]


class Every:
    """When it is time again to tell of what changes all the time."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, -math.inf

    def due(self, now: float) -> bool:
        """Whether so many seconds have passed since it last was."""
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def ignore(event: Event) -> None:
    """The default listener: silence."""
    del event
