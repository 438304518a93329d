"""Memory of one step of inversion beside the bare network's, and beside what batch norm reads.

    python -m tests.benchmarks.memory --cases resnet20,resnet18

Statistics need the inputs of the batch norms once more on the way back. The images that are
optimised and Adam's two moments of them, in float32, are told apart: the floor of
`tests.benchmarks.step` has none. What else ours keeps above the floor is waste. Peaks are of what
the allocator holds, above what it held before the steps.
"""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from typing import Any

import torch

from dreamkd.batchnorm import trace
from dreamkd.engine import Runtime
from tests.benchmarks.environment import describe
from tests.benchmarks.step import CPU, GPU, Block, Case, floor_block, network, ours_block, settings

MIB = 2**20


def peak(block: Block, steps: int, *, device: str) -> int:
    """Bytes that a block holds at most, above what was held before it.

    On CUDA this is of the first block: a recorded step takes its memory when it is recorded, and
    nothing when it is replayed.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        block(steps)
        return torch.cuda.max_memory_allocated() - before
    block(steps)  # what is kept for good: compiled code, workspaces
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        block(steps)
    held = highest = 0
    for change in _changes(profile.profiler.kineto_results.experimental_event_tree()):
        held += change
        highest = max(highest, held)
    return highest


def _changes(tree: list[Any]) -> list[int]:
    """Bytes taken (given back: negative), in the order of time."""
    found: list[tuple[int, int]] = []
    events = list(tree)
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return [size for _, size in sorted(found, key=lambda change: change[0])]


def watched_bytes(case: Case, runtime: Runtime) -> int:
    """Bytes of the inputs of every batch norm, for the batch of a case, as computed."""
    calls = trace(network(case).module, torch.zeros(1, 3, case.size, case.size))
    return case.batch * runtime.dtype.itemsize * sum(math.prod(call.shape) for call in calls)


def main() -> None:
    """Print one row per case."""
    cases = GPU if torch.cuda.is_available() else CPU
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(cases))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--eager", action="store_true")
    given = parser.parse_args()
    mode = {"precision": given.precision, "compiled": not given.eager}
    print(f"{describe()}\n")
    heads = ["case", "ours, MiB", "floor", "images and moments", "inputs of batch norm"]
    heads += ["above the floor / inputs", "without images and moments"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name in given.cases.split(","):
        case = {**CPU, **GPU}[name]
        with ExitStack() as stack:
            ours = peak(ours_block(case, stack, **mode), case.steps, device=case.device)
        floor = peak(floor_block(case, **mode), case.steps, device=case.device)
        runtime = Runtime.settle(settings(case, precision=given.precision))
        inputs = watched_bytes(case, runtime)
        images = 3 * 4 * 3 * case.batch * case.size**2
        cells = [f"{value / MIB:,.1f}" for value in (ours, floor, images, inputs)]
        cells += [f"{above / inputs:.2f}" for above in (ours - floor, ours - floor - images)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
