"""Around a command: exit codes, clean streams, errors in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from dreamkd.cli import commands, main
from dreamkd.errors import EXIT_CODES, DreamkdError, Stopped
from dreamkd.events import Hint, Note, Progress

ERRORS = [cls for cls in DreamkdError.__subclasses__() if cls is not Stopped]

Command = Callable[..., commands.Answer]


@pytest.fixture
def inspect_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Command], None]:
    """Put a function in the place of the inspect workflow: these tests are of what surrounds it."""

    def put(command: Command) -> None:
        monkeypatch.setitem(commands.RUN, "inspect", command)

    return put


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def python(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.mark.parametrize("error", ERRORS)
def test_errors_are_one_line_and_their_code(
    error: type[DreamkdError],
    inspect_does: Callable[[Command], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> commands.Answer:
        raise error("the file a\x1b[2J.pt\nis not there")

    inspect_does(fail)
    assert error.exit_code in EXIT_CODES
    assert main(["inspect", "m", "--quiet"]) == error.exit_code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "dreamkd: error: the file a\\x1b[2J.pt is not there\n"


def test_stopped_without_a_signal_is_8(
    inspect_does: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> commands.Answer:
        raise Stopped("3 of 10 batches are done; the same command goes on")

    inspect_does(stop)
    assert main(["inspect", "m"]) == 8
    line = "dreamkd: stopped: 3 of 10 batches are done; the same command goes on\n"
    assert capsys.readouterr().err == line


def test_our_bugs_keep_their_traceback(
    inspect_does: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> commands.Answer:
        raise ZeroDivisionError("a bug")

    inspect_does(fail)
    assert main(["inspect", "m"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("Traceback")
    assert streams.err.endswith("ZeroDivisionError: a bug\n")


def test_memory_that_ran_out_is_one_line_and_6(
    inspect_does: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_does(lambda *_, **__: commands.Answer({"a": bytearray(2**62)}, ()))
    assert main(["inspect", "m"]) == 6
    line = "dreamkd: error: memory ran out; free some, or make the batches smaller\n"
    assert capsys.readouterr().err == line


def test_a_result_with_an_error_is_shown_before_it(
    inspect_does: Callable[[Command], None], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = commands.Answer({"var": float("nan"), "name": "Ä"}, (), ERRORS[0]("no"))
    inspect_does(lambda *_, **__: answer)
    assert main(["inspect", "m", "--json"]) == ERRORS[0].exit_code
    streams = capsys.readouterr()
    assert json.loads(streams.out) == {"var": None, "name": "Ä"}
    assert streams.out.isascii()
    assert streams.err == "dreamkd: error: no\n"


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ([], ["chosen", "hint: look", "phase: 1/2 steps"]),
        (["--quiet"], []),
        (["--verbose"], ["model = m", "json = False", "chosen", "hint: look"]),
    ],
)
def test_stderr_has_everything_but_the_result(
    flags: list[str],
    lines: list[str],
    inspect_does: Callable[[Command], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(_: object, *, on_event: Any, should_stop: object) -> commands.Answer:
        on_event(Note("chosen"))
        on_event(Hint("look"))
        on_event(Progress("phase", 1, 2, "steps"))
        return commands.Answer({}, ("the result",))

    inspect_does(work)
    assert main(["inspect", "m", *flags]) == 0
    streams = capsys.readouterr()
    assert streams.out == "the result\n"
    assert set(lines) <= set(streams.err.splitlines())
    assert bool(streams.err) == bool(lines)
    assert "\x1b" not in streams.err


@pytest.mark.parametrize(
    ("flags", "heard"),
    [([], ["look at this", "this failed"]), (["--quiet"], ["this failed"])],
)
def test_of_what_libraries_log_only_news_are_heard_and_errors_alone_with_quiet(
    flags: list[str], heard: list[str]
) -> None:
    code = (
        "import logging, sys; from dreamkd.cli import commands, main\n"
        "logger = logging.getLogger('torch.utils.cpp_extension')\n"
        "def work(*_, **__):\n"
        "    import torch.utils.cpp_extension as builder\n"
        "    logger.warning(\"No CUDA runtime is found, using CUDA_HOME='%s'\", '/usr/local')\n"
        "    logger.warning('look at this')\n"
        "    logger.error('this failed')\n"
        "    return commands.Answer({}, ())\n"
        "commands.RUN['inspect'] = work\n"
        "assert main(['inspect', 'm', *sys.argv[1:]]) == 0\n"
        "assert not logger.filters and not logging.root.manager.disable\n"
    )
    done = python("-c", code, *flags, env={**os.environ, "CUDA_HOME": "/usr/local"})
    assert done.returncode == 0, done.stderr
    assert [line.rpartition("] ")[2] for line in done.stderr.splitlines()] == heard


def test_text_that_the_locale_cannot_write_becomes_question_marks(
    inspect_does: Callable[[Command], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(_: object, *, on_event: Any, should_stop: object) -> commands.Answer:
        on_event(Note("modèle é"))
        return commands.Answer({}, ("Straße 模", commands.tables.facts({"a": "b"})))

    inspect_does(work)
    streams = {name: TextIOWrapper(BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(["inspect", "m"]) == 0
    written = {name: stream.buffer.getvalue() for name, stream in streams.items()}
    assert written == {"stdout": b"Stra?e ?\na  b\n", "stderr": b"mod?le ?\n"}


def test_help_is_instant_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dreamkd.cli import main\n"
        "assert main(['invert', '--help']) == 0 and main(['eval', 'm', '--data']) == 2\n"
        "print({'torch', 'torchvision', 'timm', 'PIL', 'numpy', 'safetensors'} & set(sys.modules))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_our_own_networks_need_neither_library_nor_the_compiler() -> None:
    code = (
        "import sys; from dreamkd.cli import main\n"
        "assert main(['inspect', 'digits_resnet14']) == 0\n"
        "print({'torchvision', 'timm', 'torch._dynamo'} & set(sys.modules))"
    )
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": None},
        {"PYTHONIOENCODING": "latin-1", "TERM": "dumb", "USER": None, "XDG_CACHE_HOME": None},
    ],
)
def test_odd_environments(environment: Mapping[str, str | None]) -> None:
    changed = {**os.environ, **environment}
    env = {name: value for name, value in changed.items() if value is not None}
    code = (
        "import sys; from dreamkd.cli import main\n"
        "assert main(['distill', '--help']) == 0; sys.exit(main(sys.argv[1:]))"
    )
    done = python("-c", code, "inspect", "m", "--mean", "模", env=env)
    assert "--student" in done.stdout
    assert done.returncode == 2
    assert done.stderr.startswith("dreamkd: error: --mean: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    command = f"'{sys.executable}' -m dreamkd.cli eval --help {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_went_away_is_no_error() -> None:
    write = "from dreamkd.cli import streams; streams.write_result('x' * 10**6)"
    for code in (write, "from dreamkd.cli import main; assert main(['invert', '--help']) == 0"):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stdout:
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False
            )
        assert (done.returncode, done.stderr) == (0, b"")


@needs_dev_full
def test_stdout_on_a_full_disk_is_an_error() -> None:
    code = (
        "import sys; from dreamkd.cli import commands, main\n"
        "commands.RUN['inspect'] = lambda *_, **__: commands.Answer({}, ('the result',))\n"
        "sys.exit(main(['inspect', 'm']))"
    )
    with open("/dev/full", "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 6
    assert done.stderr == b"dreamkd: error: stdout cannot be written: No space left on device\n"


@needs_dev_full
@pytest.mark.parametrize("argv", [["--help"], ["inspect", "-h"], ["--version"]])
def test_so_is_a_page_of_help_on_one(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(argv) == 6
    error = capsys.readouterr().err
    assert error == "dreamkd: error: stdout cannot be written: No space left on device\n"


@needs_dev_full
@pytest.mark.parametrize(("error", "code"), [("DataError('no')", 5), ("ZeroDivisionError", 1)])
def test_an_error_that_cannot_be_written_keeps_its_code(error: str, code: int) -> None:
    program = (
        "import sys; from dreamkd.cli import commands, main; from dreamkd.errors import *\n"
        f"def fail(*_, **__): raise {error}\n"
        "commands.RUN['inspect'] = fail\n"
        "print(code := main(['inspect', 'm'])); sys.exit(code)"
    )
    with open("/dev/full", "w") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=stderr, check=False
        )
    assert (done.stdout, done.returncode) == (f"{code}\n".encode(), code)


def test_the_package_is_the_program_too() -> None:
    done = python("-m", "dreamkd", "evl")
    assert done.returncode == 2
    assert done.stderr.startswith("dreamkd: error: unknown command 'evl' (did you mean 'eval'?)")
