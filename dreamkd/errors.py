"""Errors a user can cause, and the exit code of each.

Every message is one line: what is wrong, where, what is legal, what to do. Anything that is not a
`DreamkdError` is a bug of ours and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DreamkdError(Exception):
    """Base of every error that a user can cause; `exit_code` is what the command line returns."""

    exit_code = 1
    told = False  # whether another process says it, as the leader does for its workers

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, whatever a kind of error is made from: other processes raise it again."""
        return _again, (type(self), self.args, self.__dict__)


class ConfigError(DreamkdError):
    """An option, a config file or a combination of options is not legal."""

    exit_code = 2


class ModelError(DreamkdError):
    """A model or checkpoint cannot be found, recognised, trusted or loaded."""

    exit_code = 3


class UnrecognisedError(ModelError):
    """A checkpoint does not tell its architecture; `fact` says why, without the advice."""

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}; {advice}")
        self.fact = fact


class NoBatchNormError(DreamkdError):
    """The network stores no usable batch-norm statistics, so R_feature has nothing to match."""

    exit_code = 4


class DataError(DreamkdError):
    """A data set or shard is missing, damaged or does not fit the model."""

    exit_code = 5


class RunError(DreamkdError):
    """A run folder cannot be written, is locked or of a different run; or memory ran out."""

    exit_code = 6


class InUseError(RunError):
    """Another process holds the run folder."""


class DivergedError(DreamkdError):
    """A loss term became NaN or infinite; `fact` says which, and where, without the advice."""

    exit_code = 7

    def __init__(self, fact: str, advice: str = "") -> None:
        super().__init__(f"{fact}; {advice}" if advice else fact)
        self.fact = fact


class Stopped(DreamkdError):
    """The run was stopped on request with its state saved; the same command continues it."""

    exit_code = 8


def _again(kind: type[DreamkdError], args: tuple[Any, ...], fields: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


#: Exit code -> meaning; docs/cli.md prints this table and a test raises each of them.
EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "a bug in dreamkd (the traceback is printed; please report it)",
    2: "usage: an option, a value or a config file is not legal; nothing was created",
    3: "model: not found, not recognised, not trusted or not loadable",
    4: "no batch norm: the network stores no usable running statistics",
    5: "data: a data set or shard is missing, damaged or does not fit the model",
    6: "run: the folder is not writable, locked, full or of a different run; or memory ran out",
    7: "diverged: a loss term became NaN or infinite",
    8: "stopped on request; state saved, the same command continues",
    129: "hung up (SIGHUP: the terminal is gone); state saved, the same command continues",
    130: "interrupted (Ctrl-C); state saved, the same command continues",
    143: "terminated (SIGTERM); state saved, the same command continues",
}


def said(error: BaseException) -> str:
    """What others say of an error, as part of a line: the system's words, or the first line of 160.

    The name of its class where it says nothing.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
