"""Ctrl-C, SIGTERM and a lost terminal: the first asks, the second insists."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ASKED = b"\ndreamkd: stopping as soon as the state is saved; once more stops at once\n"

#: What is heard, and what a process whose work is over makes of it: its exit code stays, Ctrl-C or
#: not.
_AFTERWARDS = {
    signal.SIGINT: signal.SIG_IGN,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class StopRequest:
    """The callable `should_stop` that a workflow polls, set by the first SIGINT, SIGTERM or SIGHUP.

    A workflow that sees True saves its state and raises `Stopped`. Until someone has polled, nobody
    would hear a request (a download, an import, a command without state): then the first signal
    stops at once, as the second one always does, by a KeyboardInterrupt. A terminal that is lost
    says so more than once, by the system and by its shell: that insists on nothing.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._polled = False
        self._heard: tuple[signal.Signals, ...] = ()
        self._owner = os.getpid()

    def __call__(self) -> bool:
        """Whether the user or the machine asked to stop."""
        self._polled = True
        return self._signal is not None

    @property
    def exit_code(self) -> int | None:
        """129 after SIGHUP, 130 after SIGINT, 143 after SIGTERM, None if no signal came."""
        return None if self._signal is None else 128 + self._signal

    @contextmanager
    def listening(self, *, to_the_end: bool = False) -> Iterator[None]:
        """Receive signals while the block lasts; a signal that is ignored (nohup) stays ignored.

        Args: to_the_end: nothing comes after the block but the end of the process.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        before = {number: signal.getsignal(number) for number in _AFTERWARDS}
        heard = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
        self._heard = tuple(heard)
        for number in heard:
            signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, was in heard.items():
                if not to_the_end:
                    signal.signal(number, was)
                elif signal.getsignal(number) == self._receive:  # no second signal has come
                    signal.signal(number, _AFTERWARDS[number])

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._owner:  # a forked worker dies of it, as it would without us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGHUP and self._signal is not None:
            return
        insists = self._signal is not None or not self._polled
        self._signal = self._signal or number
        if insists:
            for each in self._heard:  # a third one needs no cooperation
                lost = each == signal.SIGHUP
                signal.signal(each, signal.SIG_IGN if lost else signal.SIG_DFL)
            raise KeyboardInterrupt
        # Not print(): the signal may have interrupted a write to the same buffered stream.
        with suppress(AttributeError, OSError, ValueError):
            os.write(sys.stderr.fileno(), _ASKED)
