"""What a student learns from what: Table 1 of the paper, for any teacher and student.

    python -m tests.benchmarks.compare --teacher digits_resnet14 --student cifar_resnet8 \\
        --eval-data sklearn:digits --real sklearn:digits:train --batches 8 --seeds 0,1,2

Noise, DeepDream, DeepInversion, Adaptive DeepInversion, and with `--real` as many real images: the
same number of images, the same preset, student and steps, every seed a run folder, so that a killed
comparison continues. Adaptive makes half of its batches against the student of their time.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from dreamkd import models, shards
from dreamkd.randomness import generator_for
from dreamkd.samples import pixels_sha256
from tests.benchmarks.commands import labelled, load, run
from tests.benchmarks.environment import describe


def real_images(spec: str, teacher: models.Classifier, count: int, seed: int, out: Path) -> Path:
    """`count` random images of a data set as a shard."""
    images, labels = labelled(spec, teacher)
    path = out / f"real-{seed}-{count}-{pixels_sha256(images, labels.tolist())[:12]}.tar"
    if len(images) < count:
        raise SystemExit(f"{spec} has {len(images)} images, fewer than {count}")
    if not path.exists():
        drawn = torch.randperm(len(images), generator=generator_for(seed, "real"))[:count]
        records = [{"key": f"{i:08d}"} for i in range(len(drawn))]
        shards.write(path, images[drawn], labels[drawn].tolist(), records)
    return path


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-options", default="", help="how the teacher is built")
    parser.add_argument("--student", required=True)
    parser.add_argument("--preset", default="fast", help="of images and students, for every row")
    parser.add_argument("--student-options", default="", help="such as --steps, for every row")
    parser.add_argument("--image-options", default="", help="such as --image-steps, for every row")
    parser.add_argument(
        "--statistics-options", default="", help="such as --r-feature, for all but DeepDream"
    )
    parser.add_argument(
        "--competition-options", default="", help="such as --competition, for the adaptive row"
    )
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--real", help="data specification of real training images")
    parser.add_argument("--batches", type=int, default=8, help="image batches in all")
    parser.add_argument("--batch-size", type=int, default=120, help="images in each of them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    given = parser.parse_args()
    teacher = load(given.teacher, given.teacher_options)
    classes = teacher.card.num_classes
    if given.batches < 2:
        parser.error("--batches: half of them are made before the competition, so 2 at least")
    count = given.batches * given.batch_size
    if count % classes:
        parser.error(f"--batches times --batch-size is {count}, no multiple of {classes} classes")
    print(f"{given.teacher} to {given.student}, {count} images; {describe()}\n")
    found: dict[str, list[float]] = {}
    agreements: dict[str, list[float]] = {}
    for seed in given.seeds.split(","):
        out = given.out / f"seed-{seed}"
        out.mkdir(parents=True, exist_ok=True)
        same = f"{given.teacher_options} --preset {given.preset} --seed {seed}"
        images = f"--image-batch-size {given.batch_size} {given.image_options}"
        student = f"distill --teacher {given.teacher} {same} --student {given.student} "
        student += f"{given.student_options} --eval-data {given.eval_data}"

        def add(row: str, result: dict[str, Any], key: str = "student_top1") -> None:
            found.setdefault(row, []).append(result[key])
            if key == "student_top1":
                agreements.setdefault(row, []).append(result["agreement"])

        for row, method, options in (
            ("DeepDream", "deepdream", ""),
            ("DeepInversion", "deepinversion", given.statistics_options),
        ):
            command = f"invert {given.teacher} {same} --method {method} {images} {options} "
            run(command + f"--per-class {count // classes}", out / method)
            noise = "on" if method == "deepdream" else "off"
            taught = f"{student} --data {out / method} --noise-baseline {noise}"
            result, _ = run(taught, out / f"{method}-student")
            if noise == "on":
                add("noise", result, "noise_top1")
            add(row, result)
        first = given.batches // 2
        taught = f"{student} {images} {given.statistics_options} {given.competition_options} "
        taught += f"--recipe adaptive --first-batches {first} --rounds {given.batches - first} "
        taught += "--noise-baseline off"
        add("Adaptive DeepInversion", run(taught, out / "adaptive-student")[0])
        if given.real:
            shard = real_images(given.real, teacher, count, int(seed), out)
            taught = f"{student} --data {shard} --noise-baseline off"
            add("as many real images", run(taught, out / f"{shard.stem}-student")[0])
    print("| the student learned from | top-1 % | agreement with the teacher % | seeds |")
    print("| --- | --- | --- | --- |")
    for row, values in found.items():
        print(f"| {row} | {_spread(values)} | {_spread(agreements.get(row, []))} | {len(values)} |")


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
