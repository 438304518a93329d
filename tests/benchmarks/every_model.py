"""Inversion of classifiers drawn at random from torchvision and timm: which ones it works on.

    python -m tests.benchmarks.every_model --count 40 --compile

Each network gets random weights and the statistics of noise, since nothing is downloaded, and takes
three steps at the smallest input size at which it runs, as `dreamkd invert` does it: trial, weight,
memory, files and all. With `--compile` the step is also traced as torch.compile does it, into one
whole graph, and run with other values: a second graph is a failure.
One line a network, with the reason where it fails.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dreamkd import batchnorm, inversion, models
from dreamkd.augment import draw_view
from dreamkd.config import InvertConfig, merge, settle
from dreamkd.engine import Runtime
from dreamkd.formats import read_run
from dreamkd.models import Classifier, recognition
from dreamkd.networks import Networks, Own
from dreamkd.objective import Objective
from tests.benchmarks.environment import describe

SEED = 19120879
SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448)
BATCH = 4


def drawn(count: int) -> list[str]:
    """Names with batch norm, drawn from the committed index: the same for every timm."""
    entries = json.loads(recognition.INDEX.read_text(encoding="utf-8"))["fingerprints"]
    names = sorted(n for e in entries for group in e["architectures"].values() for n in group)
    names = [name for name in names if ":cifar_" not in name]
    random.Random(SEED).shuffle(names)
    found: list[str] = []
    for name in names:
        if len(found) == count:
            break
        architecture = models.Architecture(*name.split(":"))
        if architecture.exists() and _has_batch_norm(architecture):
            found.append(name)
    return found


def _has_batch_norm(architecture: models.Architecture) -> bool:
    defaults = architecture.defaults()
    classes = defaults.num_classes or 10
    try:
        module = architecture.build(
            num_classes=classes, input_size=defaults.input_size, device="meta"
        )
    except Exception:  # an encoder without a classifier
        return False
    return bool(batchnorm.layers(module))


def smallest(name: str) -> Classifier:
    """The network at the smallest size at which it runs, with the statistics of noise."""
    reason = "runs at no size"
    for side in SIDES:
        try:
            network = models.load(
                name, pretrained=False, num_classes=10, input_size=(3, side, side)
            )
            _calibrate(network.module, side)
            return network
        except Exception as error:  # whatever an operation says of a shape it cannot take
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
    raise RuntimeError(reason)


@torch.no_grad()
def _calibrate(module: nn.Module, side: int) -> None:
    found = [layer.module for layer in batchnorm.layers(module)]
    for layer in found:
        layer.train()
    for seed in range(2):
        module(torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(seed)))
    module.eval()


def invert(network: Classifier) -> None:
    """Three steps of a batch, stored and read again."""
    with tempfile.TemporaryDirectory() as folder:
        made = inversion.invert(_given(network, out=f"{folder}/run"), own=Own(network))
        shown = [label for _, label, _ in read_run(made.out)]
    if not 0 < made.r_feature < float("inf"):
        raise ValueError(f"R_feature is {made.r_feature}")
    if sorted(shown) != [*range(BATCH)]:
        raise ValueError(f"the images show {shown}")


def trace(network: Classifier) -> None:
    """One graph, and the same graph for other values."""
    from torch._dynamo.testing import CompileCounterWithBackend

    config = _settings(network)
    _, height, width = network.card.input_size
    torch._dynamo.reset()
    counter: Any = CompileCounterWithBackend("aot_eager")
    with Objective(Networks(network), config, runtime=Runtime.settle(config)) as objective:
        objective._prepare(1, False)
        step = partial(objective._terms, 1, False)
        compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=False)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(BATCH, 3, height, width, generator=generator).requires_grad_()
            view = draw_view(BATCH, shift=1, flip=True, smallest=None, generator=generator)
            weight = torch.tensor(float(config.r_feature))
            loss, _, _ = compiled(x, torch.arange(BATCH), view, BATCH, None, None, weight)
            loss.backward()
    if counter.frame_count != 1:
        raise RuntimeError(f"{counter.frame_count} graphs")


def _given(network: Classifier, **more: Any) -> InvertConfig:
    plain = {"precision": "fp32", "device": "cpu", "image_steps": 3, "stages": "1"}
    images = {"classes": f"0-{BATCH - 1}", "per_class": 1, "compile": "off"}
    images |= {"jitter_border": "wrap"}  # to try the others takes sixteen times as many steps
    return merge(InvertConfig, {"model": network.card.architecture, **plain, **images, **more})


def _settings(network: Classifier) -> InvertConfig:
    settled = settle(_given(network), input_size=network.card.input_size)
    return replace(settled, image_chunk=BATCH, r_feature=0.1)


def main() -> None:
    """Print one row a network, then how many succeed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--compile", action="store_true", help="also trace the step")
    arguments = parser.parse_args()
    print(f"seed {SEED}; {describe()}\n\n| network | input | seconds | 3 steps | one graph |")
    print("| --- | --- | --- | --- | --- |")
    tally = [0, 0]
    for name in drawn(arguments.count):
        began, cells, side = time.perf_counter(), ["-", "-"], "-"
        try:
            network = smallest(name)
            side = str(network.card.input_size[1])
            for i, work in enumerate([invert, trace][: 1 + arguments.compile]):
                cells[i] = _outcome(work, network)
                tally[i] += cells[i] == "yes"
        except RuntimeError as error:
            cells[0] = str(error)[:150]
        seconds = time.perf_counter() - began
        print(f"| {name} | {side} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)
    print(f"\n{tally[0]} of {arguments.count} take three steps", end="")
    print(f"; {tally[1]} in one graph" if arguments.compile else "")


def _outcome(work: Any, network: Classifier) -> str:
    try:
        work(network)
    except Exception as error:  # the reason is what is asked for
        return f"{type(error).__name__}: {error}".splitlines()[0][:150].replace("|", "/")
    return "yes"


if __name__ == "__main__":
    main()
