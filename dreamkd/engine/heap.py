"""Freed memory that stays with the process: a step on the CPU takes again what the last gave back.

By default glibc returns large blocks to the system as they are freed. Every page that is then taken
again costs a fault and is zeroed: up to a fifth of the time of a step of ResNet-20
(docs/benchmarks.md, "One step").
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: What `mallopt` calls the free bytes at the heap's end above which they are returned, and the size
#: from which a block is taken from the system by itself, and returned by itself.
_TRIM, _MMAP = -1, -3

#: Both while memory is kept: never, and the largest that `mallopt` takes. And after: what glibc
#: comes to by itself in a process that has freed large blocks.
_KEPT = {_TRIM: -1, _MMAP: 2**31 - 1}
_USUAL = {_TRIM: 64 << 20, _MMAP: 32 << 20}

_blocks = 0  # that are entered, one within another


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep what is freed within the block for what is taken next; give it back at its end.

    It is the whole process's: what other threads free is kept too. Afterwards glibc's thresholds
    stay where they are set, for it no longer moves them by itself. Where the C library is not
    glibc, or the environment tunes its allocator, nothing is changed.
    """
    global _blocks
    libc = _glibc()
    if libc is None:
        yield
        return
    _blocks += 1
    try:
        _set(libc, _KEPT)
        yield
    finally:
        _blocks -= 1
        if _blocks == 0:
            _set(libc, _USUAL)
            libc.malloc_trim(0)


def tunes(variable: str) -> bool:
    """Whether a variable of the environment has glibc's allocator behave otherwise."""
    return variable.startswith("MALLOC_") or variable == "GLIBC_TUNABLES"


def _glibc() -> ctypes.CDLL | None:
    """The C library, if its allocator can be told and has not been."""
    if os.name != "posix" or any(map(tunes, os.environ)):
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, f) for f in ("gnu_get_libc_version", "mallopt")) else None


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        libc.mallopt(name, value)
