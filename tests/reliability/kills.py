"""Kill -9 at random moments, the same command again: every end equals the uninterrupted run.

    python -m tests.reliability.kills --invert 100 --adaptive 50

Every second kill comes right after a random one of the changes in the run's folder, which is where
files are written, the others at a random time after the folder appeared. A killed run is continued,
and possibly killed again, until it ends; its files are compared and a fresh run begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.environment import describe

COMMON = "--device cpu --threads 1 --precision fp32 --compile off --quiet"


def invert(*, steps: int = 30, options: str = "") -> str:
    """Six batches of so many steps each."""
    images = f"--per-class 12 --image-batch-size 20 --image-steps {steps}"
    return f"invert digits_resnet14 {images} {COMMON} {options}".strip()


def learn(data: Path, *, steps: int = 60, options: str = "") -> str:
    """So many steps of a student on the images of a run."""
    student = f"--student cifar_resnet8 --steps {steps} --batch-size 32"
    given = f"distill --teacher digits_resnet14 --data {data}"
    return f"{given} {student} {COMMON} {options}".strip()


def compete(*, images: int, options: str) -> str:
    """Five batches of so many steps each, three of which compete, and a student of a hundred."""
    made = f"--first-batches 2 --rounds 3 --image-steps {images} --image-batch-size 20"
    pair = "distill --teacher digits_resnet14 --student cifar_resnet8"
    return f"{pair} {made} --steps 100 --batch-size 32 {COMMON} {options}".strip()


_AVERAGED = "--ema 0.9 --cutmix 0.5"

#: By name, which is the option of `main`.
JOBS = {
    "invert": invert(),
    "folder": invert(options="--format folder"),
    "deepdream": invert(options="--method deepdream"),
    "averaged": invert(options="--bn-momentum 0.5 --images pyramid --keep best"),
    "generator": invert(options="--images generator"),
    "adaptive": compete(images=15, options=""),
    "generated": compete(images=4, options=f"--recipe generator --refine-steps 4 {_AVERAGED}"),
    "offline": learn(
        Path("sklearn:digits:train"),
        steps=100,
        options=f"--store-labels 4 --optimizer adamw {_AVERAGED} --eval-data sklearn:digits",
    ),
}

#: Seconds between two looks at the folder, and the longest that any of these runs may take.
_LOOK, _LIMIT = 0.002, 300.0


def start(command: str, out: Path, *, workers: int = 0) -> subprocess.Popen[bytes]:
    """The command as a process of its own, or torchrun with so many workers."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m"]
    launcher = torchrun if workers else []
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "dreamkd.cli", *command.split(), "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for success."""
    output, _ = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0, output.decode()


def facts(folder: Path) -> dict[str, bytes]:
    """What must come out the same; nothing else may lie in the folders of the images."""
    names = ("manifest.jsonl", "resolved.json", "student.safetensors", "state-images.safetensors")
    names += ("contact-sheet.png",)
    files = [path for name in names if (path := folder / name).exists()]
    files += [
        path
        for name in ("shards", "images", "records", "labels")
        for path in (folder / name).rglob("*")
        if path.is_file()
    ]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    result = json.loads((folder / "result.json").read_text())
    points = result.get("curve", ())
    timed = {name for name in result if name.endswith("seconds")}
    for times in (result, *points):
        for name in timed & times.keys():
            del times[name]
    return found | {"result.json": json.dumps(result).encode()}


@dataclass
class Tally:
    """What happened in a hunt."""

    whole_seconds: float  # of the uninterrupted run
    kills: int = 0
    ends: int = 0  # runs that came to their end and were compared
    changes: list[int] = field(default_factory=list)  # made by each killed process


def hunt(command: str, folder: Path, *, kills: int, seed: int = 0) -> Tally:
    """Kill runs of `command` below `folder` so many times.

    Raises: AssertionError: a run failed, or ended in other files than the uninterrupted one.
    """
    draws = random.Random(seed)
    began = time.monotonic()
    process, whole = start(command, folder / "whole"), folder / "whole"
    appeared = _watch(process, whole, until=lambda changes, _: changes > 0)
    before = time.monotonic() - began
    changes = appeared + _watch(process, whole, until=lambda *_: False)
    finish(process)
    tally = Tally(time.monotonic() - began)
    while tally.kills < kills:
        run = folder / f"run-{tally.ends}"
        process = start(command, run)
        if tally.kills % 2 == 0:
            number = draws.randint(1, changes)
            seen = _watch(process, run, until=lambda changes, _, at=number: changes >= at)
        else:
            moment = draws.uniform(before, tally.whole_seconds)
            seen = _watch(process, run, until=lambda _, seconds, at=moment: seconds > at)
        if process.poll() is None:
            process.kill()
            process.communicate()
            tally.kills += 1
            tally.changes.append(seen)
            if tally.kills < kills:
                continue
            process = start(command, run)
        finish(process)
        assert facts(run) == facts(whole), f"{run} differs from {whole}"
        tally.ends += 1
    return tally


def _watch(
    process: subprocess.Popen[bytes], folder: Path, *, until: Callable[[int, float], bool]
) -> int:
    """Count changes of the names in `folder` until the process ends or `until` says so.

    Args: until: of the changes so far and the seconds since the call.
    """
    began, changes = time.monotonic(), 0
    before: list[tuple[str, list[str], list[str]]] = []
    while process.poll() is None and not until(changes, time.monotonic() - began):
        time.sleep(_LOOK)
        after = list(os.walk(folder))  # a quarter of what Path.rglob takes, 500 times a second
        changes += after != before
        before = after
        assert time.monotonic() - began < _LIMIT
    return changes


def main() -> None:
    """Print one row for each job."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, command in JOBS.items():
        parser.add_argument(f"--{name}", type=int, default=0, metavar="KILLS", help=command)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    print(f"{describe()}\n\n| job | kills | of these before the first file | ends, all identical |")
    print("| --- | --- | --- | --- |")
    for name, command in JOBS.items():
        kills = arguments[name]
        if kills:
            with tempfile.TemporaryDirectory() as folder:
                tally = hunt(command, Path(folder), kills=kills, seed=arguments["seed"])
            early = sum(changes == 0 for changes in tally.changes)
            print(f"| `{name}` | {tally.kills} | {early} | {tally.ends} |", flush=True)


if __name__ == "__main__":
    main()
