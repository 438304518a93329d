"""R_feature of images under views whose shifts bring in one thing or another, by network.

    python -m tests.benchmarks.borders --data 'CIFAR/train-0.tar' --model cifar10_resnet20 \\
        --model 'resnet20.safetensors --arch cifar_resnet20'

What a network stores is of the views that it was trained with. `--data` may also name the images of
a run, of which other networks then say how natural they find them.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from dreamkd.augment import BORDERS, draw_view
from dreamkd.observation import Observer
from dreamkd.randomness import generator_for
from tests.benchmarks.commands import labelled, load
from tests.benchmarks.environment import describe


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="NAME and its options")
    parser.add_argument("--data", required=True, help="data specification of the images")
    parser.add_argument("--batch", type=int, default=256, help="images whose R_feature is taken")
    parser.add_argument("--draws", type=int, default=5, help="batches")
    parser.add_argument("--shift", type=int, nargs="*", default=[2, 4], help="in pixels")
    arguments = parser.parse_args()
    views = [(border, shift) for border in BORDERS for shift in arguments.shift]
    heads = ["network", "as they are", *(f"{border} {shift}" for border, shift in views), "chance"]
    print(f"{arguments.data}, {arguments.draws} batches of {arguments.batch}; {describe()}\n")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for spec in arguments.model:
        name, _, options = spec.partition(" ")
        network = load(name, options)
        images, labels = labelled(arguments.data, network)
        levels: dict[str, list[float]] = {}
        for draw in range(arguments.draws):
            generator = generator_for(0, "borders", draw)
            order = torch.randperm(len(images), generator=generator)[: arguments.batch]
            batch, truth = images[order], labels[order]
            with Observer(network, device="cpu") as observe:
                seen = observe(batch, truth)
                levels.setdefault("chance", []).append(seen.r_feature_chance)
                levels.setdefault("as they are", []).append(seen.r_feature)
            for border, shift in views:
                view = draw_view(
                    len(order), shift=shift, flip=True, smallest=None, generator=generator
                )
                with Observer(network, border=border, device="cpu") as observe:
                    level = observe(batch, truth, view=view).r_feature
                levels.setdefault(f"{border} {shift}", []).append(level)
        cells = [_level(levels[head]) for head in heads[1:]]
        print(f"| {' | '.join([name, *cells])} |", flush=True)


def _level(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
