"""Ways of inverting one teacher, side by side: seconds, verifiers, statistics, diversity, student.

    python -m tests.benchmarks.inversion --model cifar10_resnet20 --per-class 26 \\
        --real 'CIFAR/test.tar' --verifier resnet32.safetensors \\
        --row 'fast=' --row 'fast, 50 steps=--image-steps 50' --row 'released=--preset released'

Every row is a run of `dreamkd invert` with its options, kept in a folder, so that a killed
measurement continues. Real images of `--real` stand beside as a row: R_feature depends on the size
of the batch, so real batches of the run's own size are drawn; where rows are of other batches than
each other, `--batch` takes it of as many images of each. `--border` and `--shift` take it in views
like those that the network was trained with, which is what its statistics are of. With `--student`
a student is trained on the images of each row by `dreamkd distill --data` and measured on `--real`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamkd import formats, models
from dreamkd.augment import BORDERS, draw_view
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.observation import Observer
from dreamkd.randomness import generator_for
from tests.benchmarks.commands import labelled, load, run
from tests.benchmarks.diversity import features, intra_class_similarity, recognised
from tests.benchmarks.environment import describe


@dataclass(frozen=True)
class Bench:
    """The networks that every row is measured with."""

    teacher: Classifier
    verifiers: dict[str, Classifier]
    border: str = "wrap"
    shift: int = 0

    def levels(self, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
        """R_feature of each batch, in views that shift and mirror unless the shift is 0."""
        found = []
        with Observer(self.teacher, border=self.border, device="cpu") as observe:
            for k, (images, labels) in enumerate(batches):
                view = draw_view(
                    len(labels),
                    shift=self.shift,
                    flip=self.shift > 0,
                    smallest=None,
                    generator=generator_for(0, "view", k),
                )
                found.append(observe(images, labels, view=view).r_feature)
        return found

    def columns(self, batches: list[tuple[Tensor, Tensor]]) -> list[str]:
        """R_feature of each batch; of all images, accuracies and the last verifier's similarity.

        The latter also of those images alone that it takes for what they are to show: images that
        show nothing are unlike each other too.
        """
        levels = self.levels(batches)
        spread = f" ± {statistics.stdev(levels):.1f}" if len(levels) > 1 else ""
        cells = [f"{statistics.mean(levels):.1f}{spread}"]
        images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        for verifier in (self.teacher, *self.verifiers.values()):
            cells.append(f"{measure(verifier, images, labels).top1:.1f}")
        judge = [self.teacher, *self.verifiers.values()][-1]
        seen, right = features(judge, images), recognised(judge, images, labels)
        cells.append(f"{intra_class_similarity(seen, labels):.3f}")
        cells.append(f"{intra_class_similarity(seen[right], labels[right]):.3f}")
        return cells


def drawn(real: Tensor, truth: Tensor, *, size: int, draws: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of real images, drawn without replacement each."""
    orders = [
        torch.randperm(len(real), generator=generator_for(0, "real", draw))[:size]
        for draw in range(draws)
    ]
    return [(real[order], truth[order]) for order in orders]


def made(folder: Path, *, size: int | None) -> list[tuple[Tensor, Tensor]]:
    """The images of a run, in batches of `size` or as they were made."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").open()]
    images, labels = zip(*((x, y) for x, y, _ in formats.read_run(folder)), strict=True)
    sizes = size or [line["count"] for line in lines]
    stacked, truth = torch.stack(images), torch.tensor(labels)
    return list(zip(stacked.split(sizes), truth.split(sizes), strict=True))


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--model-options", default="", help="how the model is built")
    parser.add_argument("--per-class", type=int, default=26)
    parser.add_argument("--classes", default="all")
    parser.add_argument("--real", required=True, help="data specification of real images")
    parser.add_argument("--batch", type=int, help="images whose R_feature is taken at once")
    parser.add_argument("--draws", type=int, default=20, help="real batches to draw")
    parser.add_argument("--border", choices=BORDERS, default="wrap", help="of R_feature's views")
    parser.add_argument("--shift", type=int, default=0, help="of those views; 0 for none")
    parser.add_argument("--verifier", nargs="*", default=[], help="FILE[=ARCH]")
    parser.add_argument("--row", action="append", required=True, help="NAME=OPTIONS")
    parser.add_argument("--student", default="", help="NAME and options of dreamkd distill")
    parser.add_argument("--out", type=Path, default=Path("runs/inversion"))
    arguments = parser.parse_args()
    teacher = load(arguments.model, arguments.model_options)
    verifiers = {}
    for spec in arguments.verifier:
        file, _, arch = spec.partition("=")
        verifiers[Path(file).stem] = models.load(file, arch=arch or None)
    real, truth = labelled(arguments.real, teacher)
    bench = Bench(teacher, verifiers, arguments.border, arguments.shift)
    heads = ["images", "seconds", "R_feature", "teacher %"]
    heads += [f"{name} %" for name in verifiers] + ["similarity", "of recognised"]
    heads += ["student %"] if arguments.student else []
    print(f"{arguments.model}, {arguments.per_class} images a class; {describe()}\n")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    size = 0
    for row in arguments.row:
        name, _, row_options = row.partition("=")
        out = arguments.out / name.replace(" ", "-").replace(",", "")
        command = f"invert {arguments.model} {arguments.model_options} {row_options}"
        command += f" --classes {arguments.classes} --per-class {arguments.per_class}"
        _, seconds = run(command, out)
        batches = made(out, size=arguments.batch)
        size = len(batches[0][1])
        cells = [name, f"{seconds:.0f}", *bench.columns(batches)]
        if arguments.student:
            command = f"distill --teacher {arguments.model} {arguments.model_options}"
            command += f" --data {out} --student {arguments.student} --eval-data {arguments.real}"
            command += " --noise-baseline off"
            result, _ = run(command, out.with_name(out.name + "-student"))
            cells.append(f"{result['student_top1']:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    batches = drawn(real, truth, size=size, draws=arguments.draws)
    cells = [f"real, {arguments.draws} batches of {size}", "-", *bench.columns(batches)]
    print(f"| {' | '.join(cells + ['-'] * bool(arguments.student))} |")


if __name__ == "__main__":
    main()
