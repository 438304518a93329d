"""Knowledge distillation without the data: DeepInversion and Adaptive DeepInversion.

What it offers is what `dreamkd.api` does, which is imported when the first of its names is asked
for: the command line answers before torch is there.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as of typing, which takes a while itself
if TYPE_CHECKING:
    from typing import Any

    from dreamkd.api import Classifier, Stopped, distill, evaluate, inspect, invert, load, read

__all__ = ["Classifier", "Stopped", "distill", "evaluate", "inspect", "invert", "load", "read"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("dreamkd.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
