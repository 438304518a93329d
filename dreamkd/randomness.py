"""Draws that are pure functions of the seed and a name, so that resuming needs no stored state."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator

from dreamkd.errors import RunError

#: Of the process, as the generator is that it stands for.
_GLOBAL_GENERATOR = threading.Lock()


def generator_for(seed: int, *name: str | int) -> Generator:
    """A fresh CPU generator for one purpose: `generator_for(seed, "batch", 3)`.

    The same name gives the same stream in any process. torch's CPU generator takes 32 bits of a
    seed, so that of different names one pair in 2^32 shares its stream.
    """
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    generator = Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def seed_global(seed: int, *, device: str = "cpu") -> None:
    """Seed the streams that a network draws from on `device`: torch's global ones, for dropout.

    `torch.manual_seed` would also seed every other GPU, whose streams are others'.
    """
    torch.default_generator.manual_seed(seed)
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def alone() -> Iterator[None]:
    """Let one distillation at a time run in this process. It also decorates a function.

    Dropout and the like draw from torch's global generator, which is seeded around every step and
    put back: of two students in two threads, each would get draws that are the other's.

    Raises: RunError: another one runs, in another thread, or in the one that asks.
    """
    if not _GLOBAL_GENERATOR.acquire(blocking=False):
        raise RunError(
            "another distillation runs in this process; start it in a process of its own"
        )
    try:
        yield
    finally:
        _GLOBAL_GENERATOR.release()
