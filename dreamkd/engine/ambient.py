"""Modes that a caller of Python may have set in torch, and what the work needs instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

#: Devices whose autocast is turned off: those that the work knows.
_AUTOCAST = ("cpu", "cuda")


@contextmanager
def ordinary() -> Iterator[None]:
    """Torch's modes as a new process has them while the block lasts; then as they were.

    Gradients are recorded, tensors are no inference tensors, nothing is cast, and factories that
    are not told otherwise make float32 on the CPU. So what comes out, and what a run records of its
    precision, does not depend on where its command was called. It also decorates a function.

    The default dtype is that of the whole process: while another thread works under its own, both
    see the one that was set last.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_without_autocast())
        if not _makes_on_cpu():  # the mode costs a call of Python at every operation
            stack.enter_context(torch.device("cpu"))
        before = torch.get_default_dtype()
        if before != torch.float32:  # else threads have nothing to put back
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    """No autocast, and none around: weights cast inside a block are forgotten where it ends.

    They are forgotten at the end of the outermost block alone, so that within a caller's a student
    would learn from the weights of its first step.
    """
    enabled = {device: torch.is_autocast_enabled(device) for device in _AUTOCAST}
    caches, depth = torch.is_autocast_cache_enabled(), torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for device in _AUTOCAST:
        torch.set_autocast_enabled(device, False)
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(caches)
        for device, was in enabled.items():
            torch.set_autocast_enabled(device, was)
        torch.clear_autocast_cache()
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _makes_on_cpu() -> bool:
    """Whether a factory that is told of no device makes a tensor on the CPU."""
    try:
        return torch.get_default_device().type == "cpu"
    except (RuntimeError, AssertionError):  # that of a GPU which is not here
        return False
    except AttributeError:  # none since one was unset: torch 2.8 does not know
        return False
