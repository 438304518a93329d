"""The README's first command for several seeds: teacher, student, noise baseline, seconds.

    python -m tests.benchmarks.main_job --seeds 0,1,2

Prints a table for docs/benchmarks.md. A killed measurement continues: every seed is a run folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.environment import describe

COMMAND = (
    "distill --teacher digits_resnet14 --student cifar_resnet8 --eval-data sklearn:digits --json"
)


def main() -> None:
    """Run every seed and print one row each, then mean and standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/main-job"))
    parser.add_argument("--more", default="", help="further options of dreamkd distill")
    arguments = parser.parse_args()
    results = []
    print(f"`dreamkd {COMMAND} {arguments.more}`; {describe()}\n")
    print("| seed | teacher | student | noise | agreement | wall seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in arguments.seeds.split(","):
        words = [*COMMAND.split(), *arguments.more.split(), "--seed", seed]
        words += ["--out", str(arguments.out / f"seed-{seed}")]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "dreamkd.cli", *words], stdout=subprocess.PIPE, check=True
        )
        result = json.loads(done.stdout)
        results.append(result)
        cells = [result[k] for k in ("teacher_top1", "student_top1", "noise_top1", "agreement")]
        numbers = " | ".join("-" if cell is None else f"{cell:.2f}" for cell in cells)
        print(f"| {seed} | {numbers} | {time.perf_counter() - began:.0f} |", flush=True)
    shares = [100 * r["student_top1"] / r["teacher_top1"] for r in results]
    margins = [r["student_top1"] - r["noise_top1"] for r in results if r["noise_top1"] is not None]
    for name, values in (("student / teacher, %", shares), ("student - noise, points", margins)):
        if len(values) > 1:
            print(f"{name}: {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")


if __name__ == "__main__":
    main()
