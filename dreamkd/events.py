"""What workflows say while they work. They print nothing: the caller passes `on_event`."""

from __future__ import annotations

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
    """How far a phase has come; `terms` are the newest values worth showing."""

    phase: str
    done: int
    total: int
    unit: str
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A phase is over, after `seconds` of work by this process."""

    phase: str
    seconds: float


Event = Note | Hint | Progress | Finished
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The default listener: silence."""
    del event
