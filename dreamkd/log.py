"""What a run says, kept in its folder: times and progress, which are never compared.

events.jsonl    every event, and of progress a point of its curve now and then
progress.json   the newest progress
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from dreamkd.events import Event, Every, Progress
from dreamkd.files import part_of

#: Seconds between two writes of progress.json, and between two points of its curve in events.jsonl.
_SHOWN, _POINT = 2.0, 30.0


class Log:
    """Writes the events of one process into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shown, self._points = Every(_SHOWN), Every(_POINT)
        self._waiting: list[str] = []

    def __call__(self, event: Event, *, wait: bool = False) -> None:
        """Keep an event; no room for it is no reason to stop.

        Args: wait: write nothing yet, but before the next event; progress is then forgotten.
        """
        with suppress(OSError):
            self._keep(event, wait=wait)

    def _keep(self, event: Event, *, wait: bool) -> None:
        now = time.time()
        line = json.dumps({"event": type(event).__name__, "time": now, **asdict(event)}) + "\n"
        progress = isinstance(event, Progress)
        ended = isinstance(event, Progress) and event.done == event.total
        if wait:
            self._waiting += [] if progress else [line]
            return
        if progress and (self._shown.due(now) or ended):
            # No fsync: it may be lost in a crash.
            path = self.folder / "progress.json"
            part_of(path).write_text(line, encoding="utf-8")
            part_of(path).replace(path)
        if not progress or self._points.due(now) or ended:
            with open(self.folder / "events.jsonl", "a", encoding="utf-8") as file:
                file.writelines([*self._waiting, line])
            self._waiting.clear()
