"""A finished `dreamkd invert` run beside real images: R_feature and agreement of verifiers.

    python -m tests.benchmarks.inversion runs/cifar --real CIFAR/test.tar --verifier FILE

R_feature depends on the size of the batch, so real batches of the run's own sizes are drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from dreamkd import data, losses, models
from dreamkd.batchnorm import watch
from dreamkd.engine import frozen, normalise
from dreamkd.models import Classifier
from dreamkd.randomness import generator_for
from tests.benchmarks.environment import describe


@torch.inference_mode()
def r_feature(teacher: Classifier, images: torch.Tensor) -> float:
    """R_feature of one batch, uint8 (B, C, H, W), in float32."""
    card = teacher.card
    with frozen(teacher.module) as model, watch(model) as watched:
        model(normalise(images, mean=card.mean, std=card.std))
        return float(losses.r_feature(watched.take()))


@torch.inference_mode()
def agreement(verifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of images that the verifier classifies as labelled."""
    inputs = normalise(images, mean=verifier.card.mean, std=verifier.card.std)
    logits = torch.cat([verifier.module(chunk) for chunk in inputs.split(256)])
    return 100 * float((logits.argmax(1) == labels).float().mean())


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished dreamkd invert")
    parser.add_argument("--real", required=True, help="data specification of real images")
    parser.add_argument("--verifier", nargs="*", default=[])
    parser.add_argument("--draws", type=int, default=20, help="real batches to draw")
    arguments = parser.parse_args()
    config = json.loads((arguments.run / "resolved.json").read_text())["config"]
    teacher = models.load(config["model"])
    how = data.Preprocessing.of(teacher.card)
    made, labels = data.stack(data.open_images(str(arguments.run), preprocessing=how))
    real, truth = data.stack(data.open_images(arguments.real, preprocessing=how))
    lines = [json.loads(line) for line in (arguments.run / "manifest.jsonl").open()]
    sizes = [line["count"] for line in lines]
    levels = []
    for draw in range(arguments.draws):
        order = torch.randperm(len(real), generator=generator_for(0, "real", draw))
        levels.append(r_feature(teacher, real[order[: sizes[0]]]))
    ours = [r_feature(teacher, chunk) for chunk in made.split(sizes)]
    print(f"{len(made)} images of {config['model']}, {config['image_steps']} steps; {describe()}\n")
    print("| images | R_feature | " + " | ".join(Path(v).stem for v in arguments.verifier) + " |")
    print("| --- | --- |" + " --- |" * len(arguments.verifier))
    networks = [models.load(v) for v in arguments.verifier]
    for name, pixels, wanted, values in (
        ("synthesised", made, labels, ours),
        (f"real, {arguments.draws} batches of {sizes[0]}", real, truth, levels),
    ):
        shares = " | ".join(f"{agreement(v, pixels, wanted):.2f} %" for v in networks)
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"| {name} | {statistics.mean(values):.1f}{spread} | {shares} |")


if __name__ == "__main__":
    main()
