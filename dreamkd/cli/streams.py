"""Standard streams that take any text on any connection, and text that is safe to show there."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from dreamkd.errors import RunError, said


def prepare_streams() -> None:
    """Make the standard streams usable: closed ones swallow, unencodable characters become `?`."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file opened, perhaps a shard, would be the new stdin or stderr.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


class Heedless:
    """A stream that drops what it cannot write: a terminal that is lost must not end a run of days.

    In all else it is the stream that it is made of.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written if that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    """Write `text` and a line break to stderr if that is possible."""
    stream = Heedless(sys.stderr)
    stream.write(text + "\n")
    stream.flush()


def write_result(text: str) -> None:
    """Write to stdout. A reader that has gone away (`| head`) is no error.

    Raises: RunError: stdout cannot be written, for instance on a full disk.
    """
    with writing_to_stdout():
        sys.stdout.write(text)


@contextmanager
def writing_to_stdout() -> Iterator[None]:
    """What the block writes to stdout is written at its end; if the reader left, it is dropped.

    Raises: RunError: stdout cannot be written, for instance on a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RunError(f"stdout cannot be written: {said(error)}") from None


def document(result: dict[str, Any]) -> str:
    """One JSON document in ASCII, and a newline. JSON knows no NaN and no infinity: null."""
    return json.dumps(_finite(result), indent=2, allow_nan=False) + "\n"


def one_line(text: str) -> str:
    """`text` without line breaks or control characters.

    Names come from other people's files: a terminal must not obey them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
