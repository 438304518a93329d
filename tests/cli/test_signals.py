"""The first signal asks, the second insists, and nobody is asked who does not listen."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dreamkd.cli import commands, main
from dreamkd.cli.signals import StopRequest
from dreamkd.errors import Stopped

pytestmark = pytest.mark.usefixtures("listening")

SIGNALS = pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.getsignal(number)  # Python runs handlers between its own instructions


@pytest.fixture
def inspect_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    return lambda work: monkeypatch.setitem(commands.RUN, "inspect", work)


@SIGNALS
def test_a_polled_request_ends_in_stopped(
    number: int,
    code: int,
    word: str,
    inspect_does: Callable[[Any], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def work(_: object, *, on_event: object, should_stop: Callable[[], bool]) -> commands.Answer:
        asked.append(should_stop())
        send(number)
        asked.append(should_stop())
        raise Stopped("the same command goes on")

    inspect_does(work)
    before = signal.getsignal(number)
    assert main(["inspect", "m"]) == code
    assert asked == [False, True]
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err.splitlines() == [
        "",
        "dreamkd: stopping as soon as the state is saved; once more stops at once",
        "dreamkd: stopped: the same command goes on",
    ]


@SIGNALS
def test_the_second_signal_stops_at_once(
    number: int,
    code: int,
    word: str,
    inspect_does: Callable[[Any], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work(_: object, *, on_event: object, should_stop: Callable[[], bool]) -> commands.Answer:
        should_stop()
        send(number)
        send(signal.SIGINT)
        raise AssertionError("not reached")

    inspect_does(work)
    assert main(["inspect", "m"]) == code
    assert capfd.readouterr().err.splitlines()[-1] == f"dreamkd: {word}"


@SIGNALS
def test_without_a_listener_the_first_signal_stops_at_once(
    number: int,
    code: int,
    word: str,
    inspect_does: Callable[[Any], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work(*_: object, **__: object) -> commands.Answer:
        send(number)
        raise AssertionError("not reached")

    inspect_does(work)
    before = signal.getsignal(number)
    assert main(["inspect", "m"]) == code
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"dreamkd: {word}\n"


def test_work_that_finishes_in_spite_of_a_request_is_done(
    inspect_does: Callable[[Any], None],
) -> None:
    def work(_: object, *, on_event: object, should_stop: Callable[[], bool]) -> commands.Answer:
        should_stop()
        send(signal.SIGTERM)
        return commands.Answer({}, ("done",))

    inspect_does(work)
    assert main(["inspect", "m"]) == 0


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.listening():
            send(signal.SIGINT)
        assert stop.exit_code is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with StopRequest().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
