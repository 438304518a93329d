"""One step of a student beside the bare networks: teacher forward, student there and back, SGD.

    python -m tests.benchmarks.student_step

Blocks of `dreamkd`'s training and of the floor take turns in one process: (ours) the step of
`distill`, with its draw of images, crops, flips and checks; (floor) the same fixed teacher and the
same student, cast, compiled and launched alike, on one ready batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack

import torch

from dreamkd import losses
from dreamkd.config import DistillConfig, merge, settle
from dreamkd.engine import Runtime, fixed
from dreamkd.examples import Examples
from dreamkd.training import Training
from tests.benchmarks.environment import describe, tell
from tests.benchmarks.step import CPU, GPU, HEAD, Block, Case, measure, network, row, summary, timed

#: Images to draw from.
BANK = 2048


def settings(case: Case, *, precision: str, compiled: bool) -> DistillConfig:
    """Plain distillation on images that exist."""
    given = {"teacher": "t", "student": "s", "data": "d", "device": case.device}
    given |= {"precision": precision, "batch_size": case.batch, "steps": 10**6, "warmup": 0}
    given["compile"] = "on" if compiled else "off"
    return settle(merge(DistillConfig, given), input_size=(3, case.size, case.size))


def ours_block(case: Case, stack: ExitStack, config: DistillConfig) -> Block:
    """`Training`, over so many steps."""
    runtime = Runtime.settle(config)
    training = Training(network(case), network(case), config, runtime=runtime, on_event=tell)
    stack.enter_context(training)
    images = torch.randint(0, 256, (BANK, 3, case.size, case.size), dtype=torch.uint8)
    examples = Examples(images, torch.arange(BANK) % 10).near(case.device)

    def loop() -> Iterator[None]:
        while True:
            training.advance(examples, until=training.step + case.steps)
            yield

    endless = loop()
    return lambda steps: timed(endless, 1, device=case.device) / steps


def floor_block(case: Case, config: DistillConfig) -> Block:
    """The bare three on one batch."""
    runtime = Runtime.settle(config)
    teacher = fixed(network(case).module, runtime=runtime, input_size=(3, case.size, case.size))
    student = network(case).module.train().to(case.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    x = torch.randn(case.batch, 3, case.size, case.size, device=case.device)
    x = x.to(memory_format=torch.channels_last)

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(x)
        return losses.distillation(target, student(x), temperature=4.0)

    function = (
        torch.compile(loss, fullgraph=True, dynamic=False) if config.compile == "on" else loss
    )

    def step(x: torch.Tensor) -> list[torch.Tensor | None]:
        optimizer.zero_grad()
        with runtime.autocast():
            value = function(x)
        value.backward()
        return [p.grad for p in student.parameters()]

    launch = runtime.replayed(step, on_event=tell)

    def loop() -> Iterator[None]:
        while True:
            for parameter, gradient in zip(student.parameters(), launch(x), strict=True):
                parameter.grad = gradient
            optimizer.step()
            yield

    endless = loop()
    return lambda steps: timed(endless, steps, device=case.device)


def main() -> None:
    """Print one row per case."""
    cases = GPU if torch.cuda.is_available() else CPU
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(cases))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--eager", action="store_true")
    given = parser.parse_args()
    print(f"{describe()}; {given.rounds} blocks\n")
    print(HEAD)
    for name in given.cases.split(","):
        case = {**CPU, **GPU}[name]
        config = settings(case, precision=given.precision, compiled=not given.eager)
        with ExitStack() as stack:
            blocks = {"ours": ours_block(case, stack, config), "floor": floor_block(case, config)}
            seconds = measure(blocks, steps=case.steps, rounds=given.rounds)
        print(row(name, summary(seconds)), flush=True)


if __name__ == "__main__":
    main()
