"""What the first step of inversion takes in a new process: with nothing compiled before, and again.

    python -m tests.benchmarks.starting --cases resnet20,resnet50 --again 3

Every start is a process. The first has an empty folder for compiled code, the others what it left.
Timed is from the networks as they are loaded to the end of the first step; torch is imported by
then. What a start pays is that, less a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from dreamkd.engine import Runtime
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from tests.benchmarks import step
from tests.benchmarks.environment import describe, tell

CASES = {
    **step.CPU,
    "resnet50": step.Case("torchvision:resnet50", 224, 16, 3),
    **step.GPU,
}

HEAD = """| case | a step, s | first start pays, s | again, s |
| --- | --- | --- | --- |"""


def start(case: step.Case) -> dict[str, float]:
    """Seconds to the end of the first step, and of a later one, in this process."""
    config = step.settings(case, precision="auto")
    networks = Networks(step.network(case))
    runtime = Runtime.settle(config)
    marks = [time.perf_counter()]

    def mark(number: int, total: int, terms: dict[str, float]) -> None:
        step.synchronise(case.device)
        marks.append(time.perf_counter())

    objective = Objective(networks, config, runtime=runtime, compiled=True, on_event=tell)
    with Synthesiser(objective) as synthesiser:
        labels = torch.arange(case.batch) % 10
        synthesiser.batch(labels, generator=generator_for(0, "benchmark"), on_step=mark)
    gaps = [after - before for before, after in itertools.pairwise(marks)]
    return {"first": gaps[0], "step": statistics.median(gaps[1:])}


def started(name: str, cache: str) -> dict[str, float]:
    """What `start` gives in a new process that keeps compiled code in `cache`."""
    words = [sys.executable, "-m", __spec__.name, "--cases", name, "--here"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def row(name: str, again: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = [started(name, cache) for _ in range(1 + again)]
    usual = statistics.median(one["step"] for one in (cold, *warm))
    paid = sorted(one["first"] - usual for one in warm)
    median = f"{statistics.median(paid):.1f} ({paid[0]:.1f}-{paid[-1]:.1f})"
    return f"| {name} | {usual:.3f} | {cold['first'] - usual:.1f} | {median} |"


def main() -> None:
    """Print a row per case."""
    cases = ["resnet50-84"] if torch.cuda.is_available() else ["resnet20", "resnet50"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(cases))
    parser.add_argument("--again", type=int, default=3, help="starts with compiled code")
    parser.add_argument("--here", action="store_true", help="one start, in this process, as JSON")
    given = parser.parse_args()
    names = given.cases.split(",")
    if given.here:
        print(json.dumps(start(CASES[names[0]])))
        return
    print(f"{describe()}; n = {given.again}\n\n{HEAD}")
    for name in names:
        print(row(name, given.again), flush=True)


if __name__ == "__main__":
    main()
