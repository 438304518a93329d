"""What a figure was measured on."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from dreamkd.events import Event, Hint


def describe() -> str:
    """Commit, processor, cores and versions in one line."""
    commit = _output("git", "rev-parse", "--short", "HEAD") or "no commit"
    changed = "+changes" if _output("git", "status", "--porcelain", "-uno") else ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    return f"{commit}{changed}; {device}, {torch.get_num_threads()} threads; {packages}"


def tell(event: Event) -> None:
    """Hints on stderr: what is timed may run in another way than its row says."""
    if isinstance(event, Hint):
        print(f"hint: {event.text}", file=sys.stderr, flush=True)


def _processor() -> str:
    """The model name, and whether it multiplies bfloat16."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    extra = " with avx512_bf16" if "avx512_bf16" in text else ""
    return (names[0] if names else platform.processor()) + extra


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
