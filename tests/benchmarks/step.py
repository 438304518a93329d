"""One step of inversion beside the plain loop and the bare network.

    python -m tests.benchmarks.step
    python -m tests.benchmarks.step --cases resnet20,resnet18 --rounds 9 --json

Every case times, in blocks that take turns in one process: (plain) the loop of
`tests.benchmarks.plain`; (ours) the step that `dreamkd` runs; (floor) the same frozen network, as
prepared, cast, compiled and launched as ours, forward and backward to the image and nothing else.
On the CPU both keep what they free, since ours does (`engine.heap`); by themselves they would not.
Medians and quartiles are over the blocks. Cases of the GPU are chosen where CUDA is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from dreamkd import models
from dreamkd.config import InvertConfig, merge, settle
from dreamkd.engine import Runtime, fixed
from dreamkd.models import Classifier
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from tests.benchmarks import plain
from tests.benchmarks.environment import describe, tell

#: Makes one block: runs that many steps, returns seconds per step.
Block = Callable[[int], float]


@dataclass(frozen=True)
class Case:
    """A network and a batch, and how many steps make a block."""

    model: str
    size: int
    batch: int
    steps: int
    device: str = "cpu"


CPU = {
    "resnet20": Case("cifar_resnet20", 32, 256, 6),
    "resnet18": Case("torchvision:resnet18", 224, 16, 3),
    "mobilenet_v2": Case("torchvision:mobilenet_v2", 224, 16, 3),
}
GPU = {
    "resnet20-gpu": Case("cifar_resnet20", 32, 256, 50, "cuda:0"),
    "resnet50-84": Case("torchvision:resnet50", 224, 84, 20, "cuda:0"),
    "resnet50-256": Case("torchvision:resnet50", 224, 256, 10, "cuda:0"),
}


def network(case: Case) -> Classifier:
    """Random weights, with the statistics of noise: the time depends on neither."""
    classes = 10 if case.size == 32 else 1000
    classifier = models.create(
        case.model,
        num_classes=classes,
        input_size=(3, case.size, case.size),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    module = classifier.module.train()
    with torch.no_grad():
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            module(torch.randn(16, 3, case.size, case.size, generator=generator))
    module.eval()
    return classifier


def settings(case: Case, *, precision: str) -> InvertConfig:
    """The released settings: every term of Eq. 7."""
    given = {"model": "unused", "device": case.device, "precision": precision, "preset": "released"}
    given |= {"image_steps": case.steps + 1, "l2": 1e-5, "stages": "1"}
    given |= {"image_chunk": case.batch}
    return settle(merge(InvertConfig, given), input_size=(3, case.size, case.size))


def plain_block(case: Case) -> Block:
    """(a) the plain loop; what its terms weigh does not change its time."""
    labels = (torch.arange(case.batch) % 10).to(case.device)
    model = network(case).module.to(case.device)
    x = torch.randn(case.batch, 3, case.size, case.size, device=case.device, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.05)
    how = replace(plain.IMAGENET, jitter=2 if case.size == 32 else 30)
    loop = plain.steps(model, x, labels, optimizer=optimizer, settings=how)
    return lambda steps: timed(loop, steps)


def ours_block(case: Case, stack: ExitStack, *, precision: str, compiled: bool) -> Block:
    """(b) `Synthesiser`, timed between the first and the last step of a batch."""
    config = settings(case, precision=precision)
    synthesiser = stack.enter_context(
        Synthesiser(
            Objective(
                Networks(network(case)),
                config,
                runtime=Runtime.settle(config),
                compiled=compiled,
                on_event=tell,
            )
        )
    )
    labels = torch.arange(case.batch) % 10

    def block(steps: int) -> float:
        assert steps == config.image_steps - 1
        marks: list[float] = []

        def mark(step: int, total: int, terms: dict[str, float]) -> None:
            if step in (1, total):
                synchronise(case.device)
                marks.append(time.perf_counter())

        synthesiser.batch(labels, generator=generator_for(0, "benchmark"), on_step=mark)
        return (marks[1] - marks[0]) / steps

    return block


def floor_block(case: Case, *, precision: str, compiled: bool) -> Block:
    """(c) the bare frozen network, forward and backward to the image."""
    runtime = Runtime.settle(settings(case, precision=precision))
    size = (3, case.size, case.size)
    model = fixed(network(case).module, runtime=runtime, input_size=size)
    labels = (torch.arange(case.batch) % 10).to(case.device)
    x = torch.randn(case.batch, 3, case.size, case.size, device=case.device)
    x = x.to(memory_format=torch.channels_last)

    def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).float(), labels)

    function = torch.compile(loss, fullgraph=True, dynamic=False) if compiled else loss

    def step(x: torch.Tensor) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        with runtime.autocast():
            value = function(leaf, labels)
        return torch.autograd.grad(value, leaf)[0]

    launch = runtime.replayed(step, on_event=tell)

    def loop() -> Iterator[None]:
        while True:
            launch(x)
            yield

    endless = loop()
    return lambda steps: timed(endless, steps, device=case.device)


def timed(loop: Iterator[Any], steps: int, *, device: str = "cpu") -> float:
    """Seconds per step of `loop`."""
    synchronise(device)
    began = time.perf_counter()
    for _ in itertools.islice(loop, steps):
        pass
    synchronise(device)
    return (time.perf_counter() - began) / steps


def synchronise(device: str) -> None:
    """Wait for the GPU, if there is one."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def measure(blocks: dict[str, Block], *, steps: int, rounds: int) -> dict[str, list[float]]:
    """One unmeasured block of each, then `rounds` blocks of each in turn; seconds per step."""
    for block in blocks.values():
        block(steps)
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(rounds):
        for name, block in blocks.items():
            seconds[name].append(block(steps))
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Median and quartiles in milliseconds, and the ratios of the medians."""
    facts: dict[str, Any] = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles([1e3 * v for v in values], n=4)
        facts[name] = {"ms": round(median, 2), "quartiles": [round(low, 2), round(high, 2)]}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if {"plain", "ours"} <= medians.keys():
        facts["plain/ours"] = round(medians["plain"] / medians["ours"], 3)
    if {"ours", "floor"} <= medians.keys():
        # Of neighbours in time: what slows the machine slows both.
        pairs = zip(seconds["ours"], seconds["floor"], strict=True)
        facts["ours/floor"] = round(statistics.median(a / b for a, b in pairs), 3)
    return facts


def run(case: Case, *, only: set[str], rounds: int, precision: str, compiled: bool) -> dict:
    """Build, time and summarise one case."""
    with ExitStack() as stack:
        mode = {"precision": precision, "compiled": compiled}
        makers: dict[str, Callable[[], Block]] = {
            "plain": lambda: plain_block(case),
            "ours": lambda: ours_block(case, stack, **mode),
            "floor": lambda: floor_block(case, **mode),
        }
        blocks = {name: make() for name, make in makers.items() if name in only}
        return summary(measure(blocks, steps=case.steps, rounds=rounds))


HEAD = """| case | plain, ms | ours, ms | floor, ms | plain/ours | ours/floor |
| --- | --- | --- | --- | --- | --- |"""


def row(name: str, facts: dict[str, Any]) -> str:
    """One line of the table: medians with quartiles, and ratios."""
    cells = [name]
    for way in ("plain", "ours", "floor"):
        fact = facts.get(way)
        low, high = fact["quartiles"] if fact else ("", "")
        cells.append(f"{fact['ms']} ({low}-{high})" if fact else "-")
    cells += [str(facts.get(ratio, "-")) for ratio in ("plain/ours", "ours/floor")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print one row per case, or one JSON object."""
    cases = GPU if torch.cuda.is_available() else CPU
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(cases))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="plain,ours,floor")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"environment": describe(), "rounds": arguments.rounds}
    if not arguments.json:
        print(f"{results['environment']}; {arguments.rounds} blocks\n")
        print(HEAD)
    for name in arguments.cases.split(","):
        results[name] = run(
            {**CPU, **GPU}[name],
            only=set(arguments.only.split(",")),
            rounds=arguments.rounds,
            precision=arguments.precision,
            compiled=not arguments.eager,
        )
        if not arguments.json:
            print(row(name, results[name]), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
