"""A run, as its folder keeps it: identity, manifest, states, result.

resolved.json    what the run is: every setting decided, the teacher's hash, versions
manifest.jsonl   one line per finished shard; what another run would write again, byte for byte
shards/          the images; or images/ and records/
state-*.safetensors   a network in training, for resuming
result.json      the outcome, once finished
events.jsonl, progress.json, seconds.json, env.json   times, host, progress: never compared
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamkd import manifest, states
from dreamkd.errors import DataError, ModelError, RunError
from dreamkd.events import Event, Hint, OnEvent, ignore
from dreamkd.files import exists, read_json, remove, write_atomically
from dreamkd.identity import RESOLVED, apart, differing, differing_versions
from dreamkd.log import Log

#: What else helps where a fact of a run is not what it was.
_REMEDY = {"workers": "start as many, or "}


class Run:
    """A run folder; `images` were there when it was opened, by the manifest.

    One process opens it by `open_run`, which locks it; those that help it by `join_run`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resolved: dict[str, Any] | None = read_json(folder / RESOLVED)
        identity = self.resolved
        if identity is not None and not all(
            isinstance(identity.get(part), dict) for part in ("requested", "config")
        ):
            raise RunError(f"{folder / 'resolved.json'} is damaged; choose another --out")
        # A damaged manifest is refused here, before the work.
        self.images = sum({line["batch"]: line["count"] for line in self.lines}.values())
        self._begun = False
        self.advanced = False  # by this process: the next one begins later than it did

    def resume(self, requested: Mapping[str, Any]) -> bool:
        """Whether the folder holds this very run; False if it is new.

        Raises: RunError: it holds a different run; the line names every differing setting.
        """
        if self.resolved is None:
            return False
        then, decided = self.resolved["requested"], self.resolved["config"]
        if others := differing(requested, then=then, decided=decided):
            raise RunError(
                f"{self.folder} holds a different run: {'; '.join(others)}; choose another "
                "--out, or give the same settings to continue it"
            )
        return True

    def settle(self, resolved: Mapping[str, Any]) -> None:
        """Write the run's identity."""
        write_atomically(self.folder / RESOLVED, _pretty(resolved))
        self.resolved = dict(resolved)
        environment = {
            "host": platform.node(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        }
        write_atomically(self.folder / "env.json", _pretty(environment))

    def require(self, name: str, value: Any) -> None:
        """Check that a fact of this run is still what it was, such as the teacher's hash.

        Raises: RunError: it is not.
        """
        assert self.resolved is not None
        then = self.resolved.get(name)
        if then != value:
            then, value = apart(then, value)
            raise RunError(
                f"{self.folder} was made with {name} {_short(then)}, which is now "
                f"{_short(value)}; {_REMEDY.get(name, '')}choose another --out"
            )

    def require_versions(self) -> None:
        """Check that work goes on with the packages that it began with.

        Raises: RunError: one is of another version.
        """
        assert self.resolved is not None
        if others := differing_versions(self.resolved.get("versions", {})):
            raise RunError(
                f"{self.folder} was made with {', '.join(others)}; install what it was made with, "
                "or choose another --out"
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The manifest as it is on disk, whose every line numbers its batch.

        Raises: RunError: it is damaged.
        """
        path = self.folder / manifest.FILE
        try:
            lines = manifest.read_lines(path) if path.exists() else []
        except DataError as error:
            raise RunError(f"{error}; restore it or choose another --out") from error
        if not all({"batch", "start"} <= line.keys() for line in lines):
            raise RunError(f"{path} is not of a run; restore it or choose another --out")
        return lines

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Append one line to the manifest, durably; the shard it names is already in place."""
        manifest.append(self.folder / manifest.FILE, line)

    def keep_lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Make the manifest these lines and no other."""
        if lines != self.lines:
            manifest.write(self.folder / manifest.FILE, lines)

    def save_state(
        self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Replace `state-NAME.safetensors`; `facts` are JSON values beside the tensors."""
        states.write(self._state(name), tensors, facts)

    def load_state(
        self, name: str, *, on_event: OnEvent = ignore
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest saved state of that name; None if there is none, or only a damaged one.

        What a state held can be made again: damage costs time, and is told to `on_event`.

        Raises: RunError: the system does not give it, which is no damage; it is left as it is.
        """
        path = self._state(name)
        try:
            return states.read(path) if exists(path, option="--out") else None
        except ModelError as error:
            on_event(Hint(f"{error}; what it held is made again"))
            return None

    def drop_state(self, name: str) -> None:
        """Remove `state-NAME.safetensors`, if there is one: nothing goes on from it."""
        remove(self._state(name))

    def _state(self, name: str) -> Path:
        return self.folder / f"state-{name}.safetensors"

    def limited(
        self, should_stop: Callable[[], bool], *, minutes: float | None, began: float
    ) -> Callable[[], bool]:
        """`should_stop`, which also says so once so many minutes have passed since `began`.

        Not before this process has advanced the run, which ends however short the time of each.
        """
        deadline = began + 60 * (math.inf if minutes is None else minutes)
        return lambda: should_stop() or (self.advanced and time.perf_counter() > deadline)

    def begin(self) -> None:
        """Work begins, or has begun: what an earlier end said no longer holds.

        Raises: RunError: as of `require_versions`; or the folder is read-only.
        """
        if not self._begun:
            self.require_versions()
            remove(self.folder / "result.json")
            self._begun = True

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        write_atomically(self.folder / "result.json", _pretty(result))
        self._begun = False

    @property
    def result(self) -> dict[str, Any] | None:
        """What `finish` wrote; None if it did not, or that is damaged: it can be made again."""
        with suppress(RunError):
            return read_json(self.folder / "result.json")
        return None

    def listener(self, on_event: OnEvent) -> OnEvent:
        """`on_event`, with a copy of every event in the folder once it is a run."""
        log = Log(self.folder)

        def listen(event: Event) -> None:
            # Who helps the leader may have joined before it was a run.
            is_run = self.resolved is not None or (self.folder / RESOLVED).exists()
            log(event, wait=not is_run)
            on_event(event)

        return listen


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."
