"""What workflows say while they work, on stderr: live bars on a terminal, else plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dreamkd import events
from dreamkd.cli.streams import Heedless, one_line, say
from dreamkd.events import Event, Finished, Hint, Note, OnEvent

#: A plain line of progress is written at most this often, in seconds.
INTERVAL = 10.0

#: Columns of a bar: where there is room, and the fewest that still show how far it is.
_BAR, _SHORTEST_BAR = 24, 4


@contextmanager
def display(*, quiet: bool, live: bool = True) -> Iterator[OnEvent]:
    """The listener that suits stderr, for as long as the block lasts.

    Args: live: whether bars may be drawn there; only one process can.
    """
    if quiet:
        yield events.ignore
    elif live and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _new_bars() as bars:
            yield Bars(bars)
    else:
        lines = Lines()
        try:
            yield lines
        finally:
            lines.catch_up()


class Lines:
    """Progress as plain lines, one every `INTERVAL` seconds, and the last before the work ends."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phases: dict[str, tuple[int, float]] = {}  # phase -> (done, time) when first seen
        self._every = events.Every(INTERVAL)
        self._untold = ""  # the line that came too soon after another

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, events.Progress):
            self._progress(event)
            return
        if isinstance(event, Finished):
            self._phases.pop(event.phase, None)
            self.catch_up()
        say(one_line(_text(event)))

    def catch_up(self) -> None:
        """Write the newest line if it has not been: nothing is expected to come."""
        if self._untold:
            say(one_line(self._untold))
            self._untold = ""

    def _progress(self, event: events.Progress) -> None:
        now = self._clock()
        done, since = self._phases.setdefault(event.phase, (event.done, now))
        if event.done >= event.total:
            del self._phases[event.phase]
        parts = [f"{event.phase}: {event.done}/{event.total} {event.unit}"]
        if event.left:
            parts.append(f"{duration(event.left)} left in all")
        elif event.left is None and event.total > event.done > done and now > since:
            rate = (event.done - done) / (now - since)
            parts.append(f"{duration((event.total - event.done) / rate)} left")
        line = ", ".join([*parts, *_terms(event.terms)])
        self._untold = line
        if self._every.due(now):
            self.catch_up()


class Bars:
    """Progress as one live bar per phase, gone when the phase ends or, complete, gives way."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._complete = ""  # the phase that came to its end last

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, events.Progress):
            self._progress(event)
            return
        if isinstance(event, Finished):
            self._remove(event.phase)
        style = "yellow" if isinstance(event, Hint) else ""
        self.bars.console.print(Text(one_line(_text(event)), style=style), soft_wrap=True)

    def _progress(self, event: events.Progress) -> None:
        shown: dict[str, Any] = {
            "completed": event.done,
            "total": event.total,
            "unit": event.unit,
            "terms": _terms(event.terms),
            "left": event.left,
        }
        if event.phase in self._tasks:
            self.bars.update(self._tasks[event.phase], **shown)
        else:
            self._remove(self._complete)
            self._tasks[event.phase] = self.bars.add_task(one_line(event.phase), **shown)
        if event.done >= event.total:
            self._complete = event.phase

    def _remove(self, phase: str) -> None:
        if phase in self._tasks:
            self.bars.remove_task(self._tasks.pop(phase))


class _Rows(Progress):
    """One line a phase: its name, a bar, the count, the time left, and terms.

    Where there is little room terms give way, the last first, then the bar, then the name's end.
    """

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """The lines, as wide as the terminal is now: rich asks at every refresh."""
        tasks = list(tasks)
        if not tasks:
            return Table.grid()
        cells = [(Text(task.description), _count(task), _left(task)) for task in tasks]
        name, count, left = (
            max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)
        )
        room = self.console.width - count - left - 3  # a space before each but the name
        name = max(1, min(name, room))
        bar = min(_BAR, room - name - 1)
        bars = [bar] if bar >= _SHORTEST_BAR else []
        table = Table.grid(padding=(0, 1))
        for width in (name, *bars, count, left, None):
            table.add_column(width=width, no_wrap=True)
        room -= name + sum(width + 1 for width in bars)
        for task, (first, *others) in zip(tasks, cells, strict=True):
            drawn = [BarColumn(bar_width=width)(task) for width in bars]
            terms = Text(_fitting(task.fields["terms"], room), style="dim")
            table.add_row(first, *drawn, *others, terms)
        return table


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes} min {rest:02} s"
    days, hours = divmod(hours, 24)
    return f"{hours} h {minutes:02} min" if days == 0 else f"{days} d {hours} h"


def _new_bars() -> Progress:
    # rich writes when told to, from a thread of its own, and at the end: whichever may fail.
    stream = cast("IO[str]", Heedless(sys.stderr))
    return _Rows(
        console=Console(file=stream, highlight=False, emoji=False),
        transient=True,
        refresh_per_second=4,  # the cores have other work
    )


def _count(task: Task) -> Text:
    total = f"{task.total:.0f}"  # the count is as wide, so that nothing moves while it grows
    return Text(f"{task.completed:>{len(total)}.0f}/{total} {task.fields['unit']}")


def _left(task: Task) -> Text:
    """The time that is left in all, where it was told; else of the phase, as rich estimates it."""
    left = task.fields["left"]
    if left is None:
        return TimeRemainingColumn().render(task)
    return Text(f"{duration(left)} left in all", style="progress.remaining")


def _fitting(terms: Sequence[str], width: int) -> str:
    """As many whole `terms` as fit into `width` columns, and a sign where some do not."""
    for number in range(len(terms), 0, -1):
        line = "  ".join(terms[:number]) + (" …" if number < len(terms) else "")
        if cell_len(line) <= width:
            return line
    return ""


def _text(event: Note | Hint | Finished) -> str:
    if isinstance(event, Finished):
        return f"{event.phase}: done in {duration(event.seconds)}"
    return f"hint: {event.text}" if isinstance(event, Hint) else event.text


def _terms(terms: Mapping[str, float]) -> list[str]:
    return [
        f"{name} {value:,.0f}" if value >= 10_000 and value.is_integer() else f"{name} {value:.4g}"
        for name, value in terms.items()
    ]
