"""What every loop shares: where it computes, at which rate, behind which guards."""

from dreamkd.engine.ambient import ordinary
from dreamkd.engine.compiling import Work, compile_step, worth_compiling
from dreamkd.engine.fixed import fixed
from dreamkd.engine.guards import LOOK, check_finite, diverged, enough_memory
from dreamkd.engine.memory import chunks, require_memory, spare_bytes
from dreamkd.engine.modules import (
    frozen,
    lay_out,
    normalise,
    on_device,
    renormalise,
    to_uint8,
)
from dreamkd.engine.runtime import Runtime
from dreamkd.engine.schedule import rate
from dreamkd.engine.weights import WeightAverage, optimizer

__all__ = [
    "LOOK",
    "Runtime",
    "WeightAverage",
    "Work",
    "check_finite",
    "chunks",
    "compile_step",
    "diverged",
    "enough_memory",
    "fixed",
    "frozen",
    "lay_out",
    "normalise",
    "on_device",
    "optimizer",
    "ordinary",
    "rate",
    "renormalise",
    "require_memory",
    "spare_bytes",
    "to_uint8",
    "worth_compiling",
]
