"""Draws that are pure functions of the seed and a name, so that resuming needs no stored state."""

from __future__ import annotations

import hashlib

from torch import Generator


def generator_for(seed: int, *name: str | int) -> Generator:
    """A fresh CPU generator for one purpose: `generator_for(seed, "batch", 3)`.

    Different names give independent streams; the same name gives the same stream in any process.
    """
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    generator = Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator
