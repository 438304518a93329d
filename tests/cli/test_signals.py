"""The first signal asks, the second insists, and nobody is asked who does not listen."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dreamkd.cli import commands, main, options
from dreamkd.cli.signals import StopRequest
from dreamkd.errors import Stopped

pytestmark = pytest.mark.usefixtures("listening")

SIGNALS = pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
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


@SIGNALS
def test_a_signal_while_arguments_are_read_is_one_line_too(
    number: int,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "merge", lambda *_, **__: send(number))
    assert main(["inspect", "m"]) == code
    assert capfd.readouterr().err == f"dreamkd: {word}\n"


def test_a_lost_terminal_insists_on_nothing(
    inspect_does: Callable[[Any], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """The system sends SIGHUP, and the shell once more."""

    def work(_: object, *, on_event: object, should_stop: Callable[[], bool]) -> commands.Answer:
        should_stop()
        send(signal.SIGHUP)
        send(signal.SIGHUP)
        raise Stopped("the same command goes on")

    inspect_does(work)
    assert main(["inspect", "m"]) == 129
    assert capfd.readouterr().err.splitlines()[-1] == "dreamkd: stopped: the same command goes on"


def test_a_lost_terminal_leaves_an_end_its_time() -> None:
    """Before anyone has polled, the first SIGHUP ends the work, and others come meanwhile."""
    done = process(
        "from dreamkd.cli import commands\n"
        "def work(*_, **__):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGHUP); print('tidy', flush=True)\n"
        "commands.RUN['inspect'] = work"
    )
    assert (*done.communicate(timeout=60), done.returncode) == ("tidy\n", "dreamkd: hung up\n", 129)


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


def process(code: str) -> subprocess.Popen[str]:
    """A process that runs `main()` as the script `dreamkd inspect m` does, after `code`."""
    program = (
        "import os, signal, sys; from dreamkd.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['dreamkd', 'inspect', 'm']\n"
        f"{code}\n"
        "sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -15)])
def test_after_its_result_ctrl_c_changes_nothing_in_a_process(number: int, code: int) -> None:
    done = process(
        "import atexit; from dreamkd.cli import commands\n"
        "commands.RUN['inspect'] = lambda *_, **__: commands.Answer({}, ('done',))\n"
        f"atexit.register(lambda: [os.kill(os.getpid(), {number}) for _ in range(2)])"
    )
    assert (*done.communicate(timeout=60), done.returncode) == ("done\n", "", code)


def test_a_third_ctrl_c_needs_no_cooperation_of_a_process_that_ends() -> None:
    done = process(
        "import atexit; from dreamkd.cli import commands\n"
        "commands.RUN['inspect'] = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    _, error = done.communicate(timeout=60)
    assert (error, done.returncode) == ("dreamkd: interrupted\n", -signal.SIGINT)


@pytest.mark.parametrize("module", ["dreamkd.cli.signals", "dreamkd.cli.streams", "typer", "rich"])
def test_an_interrupted_import_is_one_line(module: str) -> None:
    done = process(
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self); os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())"
    )
    assert (*done.communicate(timeout=60), done.returncode) == ("", "dreamkd: interrupted\n", 130)
