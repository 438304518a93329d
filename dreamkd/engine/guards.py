"""Stopping when the numbers stop making sense, or the device has no more room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dreamkd.engine.memory import out_of_memory
from dreamkd.errors import DivergedError, RunError

#: Steps between two looks at the terms of a loss: each look is a host sync.
LOOK = 25


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Say how to make the work smaller when the device runs out of memory.

    Raises: RunError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise RunError(f"the device ran out of memory: {advice}") from error


def check_finite(terms: Mapping[str, float], *, where: str) -> None:
    """Refuse to go on from a NaN or infinite term.

    Raises: DivergedError: names the term and where it happened.
    """
    for name, value in terms.items():
        if not math.isfinite(value):
            raise diverged(f"{name} became {value}", where=where, lower="the rate or a weight")


def diverged(what: str, *, where: str, lower: str = "the rate") -> DivergedError:
    """What to raise where numbers make no sense any more.

    Args: lower: what may help if it is lowered.
    """
    advice = f"in another --out lower {lower}, or try --precision fp32"
    return DivergedError(f"{what} at {where}", advice)
