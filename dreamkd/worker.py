"""One process at work on a run: what it writes to, who works beside it, whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from dreamkd.distributed import Workers
from dreamkd.events import OnEvent
from dreamkd.runs import Run


@dataclass(frozen=True)
class Worker:
    """The leader, or one that helps it."""

    run: Run
    group: Workers
    on_event: OnEvent
    should_stop: Callable[[], bool]

    @classmethod
    def at(
        cls,
        run: Run,
        group: Workers,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
        *,
        minutes: float | None,
        began: float,
    ) -> Self:
        """Take up work on an open run.

        Args:
            on_event: hears all that the leader tells, which the run's log keeps, and others' hints.
            should_stop: what asks it to stop, beside the time.
            minutes: of `--max-minutes`; as `Run.limited`, with `began`.
        """
        told = run.listener(on_event)
        if not group.leads:
            told = group.hints_only(told)
        return cls(run, group, told, run.limited(should_stop, minutes=minutes, began=began))
