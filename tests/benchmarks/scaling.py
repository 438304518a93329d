"""Seconds an image, peak memory, and what encoding takes, as a run of `dreamkd invert` grows.

    python -m tests.benchmarks.scaling --model cifar10_resnet20 \\
        --options '--image-batch-size 130 --image-steps 10' --per-class 52,208,832

Every row is a process of its own. Its seconds an image are taken between the ends of its first and
of its last batch, so that starting and compiling are left out; its memory is the largest resident
set. Encoding is timed by itself afterwards, on the last batch, on one thread: its share is of the
seconds that a batch took, with which it overlaps.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dreamkd import formats, shards
from tests.benchmarks.environment import describe


def grow(model: str, options: str, per_class: int, out: Path) -> tuple[int, float, float, float]:
    """Images, seconds an image, peak MiB, percent of the time that encoding takes."""
    words = [sys.executable, "-m", "dreamkd.cli", "invert", model, *shlex.split(options)]
    words += ["--per-class", str(per_class), "--out", str(out), "--quiet"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{shlex.join(words)}: failed")
    lines = [json.loads(line) for line in (out / "manifest.jsonl").open()]
    if len(lines) < 2:
        raise SystemExit(f"{out} has one batch: nothing lies between the first and the last")
    ends = [path.stat().st_mtime for path in sorted((out / "shards").glob("*.tar"))]
    after_first = sum(line["count"] for line in lines[1:])
    seconds = (ends[-1] - ends[0]) / after_first
    last = list(formats.read_run(out))[-lines[-1]["count"] :]
    images = torch.stack([image for image, _, _ in last])
    labels, records = [label for _, label, _ in last], [record for _, _, record in last]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        shards.write(Path(folder) / "shard.tar", images, labels, records)
        encoding = (time.perf_counter() - began) / len(last)
    total = after_first + lines[0]["count"]
    return total, seconds, used.ru_maxrss / 1024, 100 * encoding / seconds


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar10_resnet20")
    parser.add_argument("--options", default="", help="of dreamkd invert, for every row")
    parser.add_argument("--per-class", default="52,208,832")
    given = parser.parse_args()
    print(f"dreamkd invert {given.model} {given.options}; {describe()}\n")
    print("| images | ms an image | peak MiB | encoding, share of the time |\n|" + " --- |" * 4)
    for per_class in map(int, given.per_class.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            count, seconds, peak, share = grow(
                given.model, given.options, per_class, Path(folder) / "run"
            )
        cells = f"{count:,}", f"{1e3 * seconds:.2f}", f"{peak:,.0f}", f"{share:.2f} %"
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
