"""Memory that is freed while the CPU computes: kept for the next step, then given back."""

import ctypes
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from dreamkd.engine import heap
from dreamkd.engine.heap import kept_heap

#: Says how much of 96 MiB stays with a process that takes and frees them, in shares.
JOB = """
import json, resource
from pathlib import Path
import torch
from dreamkd.engine import Runtime

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (96 * 2**20)

def kept(*, rounds):
    for _ in range(rounds):
        torch.ones(24 * 2**20)
    return resident() - before

cpu, before = Runtime("cpu", "fp32", 1), resident()
said = [kept(rounds=1)]
with cpu.active():
    with cpu.active():
        said.append(kept(rounds=1))
    said += [kept(rounds=0), kept(rounds=20)]
said.append(kept(rounds=0))
print(json.dumps(said))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize("variable", ["", "GLIBC_TUNABLES"])
def test_what_is_freed_is_kept_while_the_cpu_computes_and_then_given_back(variable: str) -> None:
    """In a process of its own: what others did to the heap of this one would tell."""
    environment = {name: value for name, value in os.environ.items() if not heap.tunes(name)}
    if variable:
        environment[variable] = ""
    output = subprocess.check_output([sys.executable, "-c", JOB], env=environment)
    outside, first, nested, often, after = json.loads(output)
    assert outside < 0.5
    if variable:
        assert max(first, nested, often) < 0.5
    else:
        assert first > 0.5
        assert nested > 0.5  # until the outermost block ends
        assert often < 10  # now and then a hole is a few bytes too small for what is to take it
    assert after < 0.5


@dataclass
class Library:
    """A C library, and what its allocator was told."""

    told: list[tuple[int, ...]] = field(default_factory=list)

    def mallopt(self, name: int, value: int) -> None:
        self.told.append((name, value))

    def malloc_trim(self, pad: int) -> None:
        self.told.append((pad,))


class Glibc(Library):
    """One with the name of its version."""

    def gnu_get_libc_version(self) -> bytes:
        return b"2.36"


@pytest.mark.parametrize(
    ("library", "variable", "changed"),
    [
        (Glibc, "", True),
        (Glibc, "GLIBC_TUNABLES", False),
        (Glibc, "MALLOC_TRIM_THRESHOLD_", False),
        (Library, "", False),
    ],
)
def test_an_allocator_that_the_user_tuned_or_that_is_another_is_left_alone(
    library: type[Library], variable: str, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in filter(heap.tunes, list(os.environ)):
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, "")
    found = library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: found)
    with kept_heap():
        assert bool(found.told) == changed
