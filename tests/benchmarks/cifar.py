"""The literature's pairs on CIFAR-10, on a GPU: teachers, then students in given minutes.

    python -m tests.benchmarks.cifar --train 'CIFAR/train-*.tar' --test CIFAR/test.tar

Trains `cifar_resnet34` and `cifar_vgg11_bn` on the real images (200 epochs), then distils each pair
without them. Every part is a folder and continues where it was: with `--minutes` the script stops
in time, and the same command goes on. Prints one row for each pair that is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.environment import describe

#: Teacher, student, minutes of work, further options of `dreamkd distill`.
ADAPTIVE = "--recipe adaptive --images pixels"
ROWS = (
    ("resnet34_200", "cifar_resnet18", 12, ""),
    ("resnet34_200", "cifar_resnet18", 30, ""),
    ("resnet34_200", "cifar_resnet18", 60, ADAPTIVE),
    ("vgg11_bn_200", "cifar_resnet18", 60, ADAPTIVE),
)


def main() -> None:
    """Print one table, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="data specification of the training images")
    parser.add_argument("--test", required=True, help="data specification of the test images")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar"))
    given = parser.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    for name in dict.fromkeys(row[0] for row in ROWS):
        teach(name, given, ends=ends)
    print(f"{describe()}\n\n| teacher | student | minutes | teacher % | student % | agreement % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, (teacher, student, minutes, options) in enumerate(ROWS):
        left = max(0.1, (ends - time.monotonic()) / 60)
        command = (
            f"distill --teacher {given.out}/cifar10_{teacher}.safetensors --student {student} "
            f"--budget-minutes {minutes} {options} --noise-baseline off --eval-data {given.test} "
            f"--max-minutes {left} --out {given.out}/row-{number} --json"
        )
        done = subprocess.run(
            [sys.executable, "-m", "dreamkd.cli", *command.split()],
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode == 8:
            raise SystemExit("out of time; the same command goes on")
        done.check_returncode()
        found = json.loads(done.stdout)
        accuracies = [found[name] for name in ("teacher_top1", "student_top1", "agreement")]
        numbers = " | ".join(f"{value:.2f}" for value in accuracies)
        print(f"| {teacher} | {student} | {minutes} {options} | {numbers} |", flush=True)


def teach(name: str, given: argparse.Namespace, *, ends: float) -> None:
    """Train a teacher, or go on with it; stops the script when time is up."""
    if (given.out / f"cifar10_{name}.safetensors").exists():
        return
    words = [name, "--train", given.train, "--test", given.test]
    words += ["--out", str(given.out), "--state", str(given.out)]
    try:
        subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.teachers", *words],
            timeout=max(1.0, ends - time.monotonic()),
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise SystemExit("out of time; the same command goes on") from None


if __name__ == "__main__":
    main()
