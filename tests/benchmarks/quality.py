"""Seconds until an independent network takes images for what was asked: `fast` and the plain loop.

    python -m tests.benchmarks.quality --model RESNET20 --verifier RESNET32 --real CIFAR/test.tar

The plain loop of `tests.benchmarks.plain` runs the settings released for CIFAR-10 to their last
step; what it reaches on the way is measured while its clock stands. Ours is timed as whole
processes of `dreamkd invert`, start and files included, of more and more steps: a run anneals, so
that it has to be as long as it is planned. Good enough is what `--agreement` says, or what the
plain loop has in the end where that is less, at R_feature no higher than real images have in as
large batches. A killed measurement continues.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamkd import models
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.observation import Observer
from tests.benchmarks import plain
from tests.benchmarks.commands import labelled, load, run
from tests.benchmarks.environment import describe
from tests.benchmarks.inversion import drawn, made


@dataclass(frozen=True)
class Mark:
    """What so many steps and seconds led to."""

    way: str
    steps: int
    seconds: float
    r_feature: float
    agreement: float

    def row(self) -> str:
        """One line of the table."""
        cells = [self.way, f"{self.steps}", f"{self.seconds:.1f}"]
        return f"| {' | '.join([*cells, f'{self.r_feature:.1f}', f'{self.agreement:.1f}'])} |"


@dataclass(frozen=True)
class Judge:
    """Rounded images, by their teacher's statistics and by a network that had no part in them."""

    teacher: Classifier
    verifier: Classifier

    def r_feature(self, images: Tensor, labels: Tensor) -> float:
        """R_feature of one uint8 batch (B, C, H, W), float32."""
        with Observer(self.teacher, device="cpu") as observe:
            return observe(images, labels).r_feature

    def __call__(self, way: str, steps: int, seconds: float, batch: tuple[Tensor, Tensor]) -> Mark:
        agreement = measure(self.verifier, *batch).top1
        return Mark(way, steps, seconds, self.r_feature(*batch), agreement)


def looped(judge: Judge, labels: Tensor, *, steps: int, every: int, state: Path) -> Iterator[Mark]:
    """The plain loop, marked each `every` steps; a killed one goes on at its last mark.

    Args:
        labels: int64 (B,), what the images are to show.
        state: file of the images, Adam's moments and the marks so far.
    """
    card = judge.teacher.card
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.mean, card.std))
    x = torch.randn(len(labels), *card.input_size, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    done, seconds, marks = 0, 0.0, list[Mark]()
    if state.exists():
        kept = torch.load(state, weights_only=True)
        x.data.copy_(kept["x"])
        optimizer.load_state_dict(kept["optimizer"])
        marks = [Mark(*values) for values in kept["marks"]]
        done, seconds = marks[-1].steps, marks[-1].seconds
        yield from marks
    model = judge.teacher.module
    loop = plain.steps(model, x, labels, optimizer=optimizer, settings=plain.CIFAR)
    for step in range(done + every, steps + 1, every):
        began = time.perf_counter()
        for _ in itertools.islice(loop, every):
            pass
        seconds += time.perf_counter() - began
        images = (255 * (x.detach() * std + mean)).round().clamp(0, 255).to(torch.uint8)
        marks.append(judge("plain", step, seconds, (images, labels)))
        kept = {"x": x.detach(), "optimizer": optimizer.state_dict()}
        kept["marks"] = [tuple(vars(mark).values()) for mark in marks]
        torch.save(kept, state.with_suffix(".part"))
        state.with_suffix(".part").replace(state)
        yield marks[-1]


def processes(
    judge: Judge, labels: Tensor, command: str, *, steps: list[int], out: Path
) -> Iterator[Mark]:
    """Ours, a process of `command` for every number of `steps`, timed as its user waits for it."""
    command += f" --image-batch-size {len(labels)}"
    for count in steps:
        folder = out / f"{count}-steps"
        _, seconds = run(f"{command} --image-steps {count}", folder)
        yield judge("ours", count, seconds, made(folder, size=None)[0])


def main() -> None:
    """Print what both reach, and how much longer the plain loop takes to get as far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--model-options", default="", help="how the model is built")
    parser.add_argument("--options", default="", help="of dreamkd invert")
    parser.add_argument("--verifier", required=True)
    parser.add_argument("--real", required=True, help="data specification of real images")
    parser.add_argument("--agreement", type=float, default=95.0, help="percent")
    parser.add_argument("--plain-steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps of the plain loop to a mark")
    parser.add_argument("--steps", default="50,75,100,150,200", help="of ours, in turn")
    parser.add_argument("--per-class", type=int, default=26)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    given = parser.parse_args()
    judge = Judge(load(given.model, given.model_options), models.load(given.verifier))
    card = judge.teacher.card
    labels = torch.arange(given.per_class * card.num_classes) % card.num_classes
    batches = drawn(*labelled(given.real, judge.teacher), size=len(labels), draws=20)
    limit = statistics.mean(judge.r_feature(*batch) for batch in batches)
    print(f"{given.model}, {len(labels)} images in one batch; {describe()}; n = 1")
    print(f"R_feature of real images: {limit:.1f}\n")
    print("| way | steps | seconds | R_feature | agreement % |\n| --- | --- | --- | --- | --- |")
    given.out.mkdir(parents=True, exist_ok=True)
    state = given.out / "plain.pt"
    loop = looped(judge, labels, steps=given.plain_steps, every=given.every, state=state)
    slow = shown(loop)
    command = f"invert {given.model} {given.model_options} {given.options}"
    command += f" --per-class {given.per_class}"
    steps = [int(count) for count in given.steps.split(",")]
    fast = shown(processes(judge, labels, command, steps=steps, out=given.out))
    asked = min(given.agreement, slow[-1].agreement)
    for goal in sorted({asked, given.agreement}):
        enough = [first(marks, goal, limit) for marks in (slow, fast)]
        print(f"\n{goal:.1f} % at R_feature up to {limit:.1f}: {sentence(*enough)}")


def shown(marks: Iterator[Mark]) -> list[Mark]:
    """Print each as it comes."""
    kept = []
    for mark in marks:
        print(mark.row(), flush=True)
        kept.append(mark)
    return kept


def first(marks: list[Mark], goal: float, limit: float) -> Mark | None:
    """The first that is good enough."""
    enough = (mark for mark in marks if mark.agreement >= goal and mark.r_feature <= limit)
    return next(enough, None)


def sentence(slow: Mark | None, fast: Mark | None) -> str:
    """How long both take."""
    seconds = [f"{mark.seconds:.0f} s" if mark else "never" for mark in (slow, fast)]
    ratio = f", {slow.seconds / fast.seconds:.1f} times" if slow and fast else ""
    return f"plain {seconds[0]}, ours {seconds[1]}{ratio}"


if __name__ == "__main__":
    main()
