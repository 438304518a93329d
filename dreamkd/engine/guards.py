"""Stopping when the numbers stop making sense."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dreamkd.errors import DivergedError


def check_finite(terms: Mapping[str, float], *, where: str) -> None:
    """Refuse to go on from a NaN or infinite term.

    Raises: DivergedError: names the term and where it happened.
    """
    for name, value in terms.items():
        if not math.isfinite(value):
            raise DivergedError(
                f"{name} became {value} at {where}; what was finished before is kept: lower the "
                "rate or the weight of that term, or try --precision fp32"
            )
