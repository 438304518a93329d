"""What the competition does: images against a student beside plain ones, at equal steps.

    python -m tests.benchmarks.competition --teacher digits_resnet14 --student half.safetensors

Both are runs of `dreamkd invert` with the same start and steps. On the stored images: the share
that teacher and student classify as asked, and the mean Jensen-Shannon divergence of their outputs
(Yin et al. 2020, Eq. 8), in nats.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dreamkd import formats, losses, models
from dreamkd.engine import normalise
from dreamkd.models import Classifier
from tests.benchmarks.commands import load, run
from tests.benchmarks.environment import describe


@torch.no_grad()
def outputs(network: Classifier, images: Tensor) -> Tensor:
    """Logits (N, classes) of stored images."""
    parts = [normalise(x, mean=network.card.mean, std=network.card.std) for x in images.split(256)]
    return torch.cat([network.module(part) for part in parts])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-options", default="", help="how the teacher is built")
    parser.add_argument("--student", required=True, help="checkpoint")
    parser.add_argument("--image-options", default="", help="of both runs")
    parser.add_argument("--competition", default="", help="options of the competition")
    parser.add_argument("--out", type=Path, default=Path("runs/competition"))
    given = parser.parse_args()
    teacher, student = load(given.teacher, given.teacher_options), models.load(given.student)
    print(f"{given.teacher} against {given.student}; {describe()}\n")
    print("| images | teacher % | student % | JS |\n| --- | --- | --- | --- |")
    against = f"--method adaptive --student {given.student} {given.competition}"
    for name, method in (("plain", ""), ("adaptive", against)):
        out = given.out / name
        run(f"invert {given.teacher} {given.teacher_options} {given.image_options} {method}", out)
        pairs = [(image, label) for image, label, _ in formats.read_run(out)]
        images, labels = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
        theirs, ours = outputs(teacher, images), outputs(student, images)
        hits = [100 * float((z.argmax(1) == labels).float().mean()) for z in (theirs, ours)]
        js = float(losses.jensen_shannon(theirs, ours).mean())
        print(f"| {name} | {hits[0]:.1f} | {hits[1]:.1f} | {js:.3f} |", flush=True)


if __name__ == "__main__":
    main()
