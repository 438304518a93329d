"""The command line: arguments in, one workflow, a result on stdout, an exit code.

This file is what happens around a command: errors become one line and a code, signals become a
request to stop. Nothing here imports torch, so that `dreamkd --help` is instant, and nothing that
Python has not loaded itself is imported before Ctrl-C is caught.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

TYPE_CHECKING = False  # as of typing, which takes a while itself
if TYPE_CHECKING:
    from dreamkd.cli.signals import StopRequest

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name. None: those of this process, which is
            taken to end with the command, so that Ctrl-C does nothing any more after it.
    Returns: the exit code, one of `dreamkd.errors.EXIT_CODES`.
    """
    stop = None
    try:
        from dreamkd.cli.signals import StopRequest

        stop = StopRequest()
        with stop.listening(to_the_end=argv is None):
            return _run(sys.argv[1:] if argv is None else argv, stop)
    except KeyboardInterrupt:
        code = (stop and stop.exit_code) or 130
        return _end({129: "hung up", 143: "terminated"}.get(code, "interrupted"), code)


def _run(argv: Sequence[str], stop: StopRequest) -> int:
    # Imported where a signal is heard: typer and rich take a while, and torch more.
    from dreamkd.cli.streams import prepare_streams, say
    from dreamkd.errors import DreamkdError, RunError, Stopped

    prepare_streams()
    try:
        return _answer(argv, stop)
    except DreamkdError as error:
        stopped = isinstance(error, Stopped)
        code = (stopped and stop.exit_code) or error.exit_code
        if error.told:
            return code
        return _end(f"{'stopped' if stopped else 'error'}: {error}", code)
    except MemoryError:
        what = "memory ran out; free some, or make the batches smaller"
        return _end(f"error: {what}", RunError.exit_code)
    except Exception:
        import traceback

        # Ours to mend: the whole traceback, for the report.
        say(traceback.format_exc().rstrip("\n"))
        return 1


def _answer(argv: Sequence[str], stop: StopRequest) -> int:
    from dreamkd.cli.options import parse

    try:
        request = parse(argv)
    finally:
        if stop.exit_code is not None:
            raise KeyboardInterrupt  # of which Typer makes an exit code, whatever the signal
    if isinstance(request, int):
        return request
    from dreamkd.cli.commands import run

    run(request.command, request.config, should_stop=stop)
    return 0


def _end(line: str, code: int) -> int:
    from dreamkd.cli.streams import one_line, say

    say(one_line(f"dreamkd: {line}"))
    return code
