"""Learning rates."""

from __future__ import annotations

import math


def rate(step: int, steps: int, *, warmup: int = 0, schedule: str = "cosine") -> float:
    """The factor of the peak rate at `step` of `steps`, counted from 0.

    Linear warm-up over `warmup` steps, then a cosine that would reach 0 at `steps`, or constant.

        (step + 1) / warmup                                        step < warmup
        (1 + cos(pi (step - warmup) / (steps - warmup))) / 2        otherwise

    Returns: within [0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
