"""Half an hour of work: whether memory, open files or the time of a batch grow.

    python -m tests.reliability.soak --minutes 30

`invert` and adaptive `distill` of the bundled digits run side by side, one thread each, with more
work than fits. Every few seconds their memory, open files and finished batches are read; a line is
laid through each after the first tenth, and its slope given with the standard error of the means
of twelve equal parts, which neighbouring samples do not flatter.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.environment import describe

COMMON = "--threads 1 --precision fp32 --compile off --quiet"
JOBS = {
    "invert": (
        "invert digits_resnet14 --per-class 6000 --image-batch-size 50 --image-steps 40 " + COMMON
    ),
    "distill": (
        "distill --teacher digits_resnet14 --student cifar_resnet8 --first-batches 4 --rounds 6000 "
        "--image-batch-size 50 --image-steps 20 --steps 60000 --batch-size 32 " + COMMON
    ),
}

#: Seconds between two samples; parts of a run; exit code of a run that was out of time.
_EVERY, _PARTS, _STOPPED = 2.0, 12, 8


@dataclass
class Samples:
    """What was read of one process."""

    process: subprocess.Popen[bytes]
    folder: Path
    seconds: list[float] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)

    def read(self, now: float) -> None:
        """Add a sample if the process is at work."""
        proc = Path("/proc") / str(self.process.pid)
        manifest = self.folder / "manifest.jsonl"
        if self.process.poll() is not None or not manifest.exists():
            return
        try:
            resident = (proc / "status").read_text().split("VmRSS:")[1].split()[0]
            files = len(list((proc / "fd").iterdir()))
        except (OSError, IndexError):  # it has just ended
            return
        sample = {
            "memory, MiB": int(resident) / 1024,
            "open files": files,
            "batches": manifest.read_bytes().count(b"\n"),
        }
        self.seconds.append(now)
        for name, value in sample.items():
            self.columns.setdefault(name, []).append(value)

    def parts(self, name: str) -> list[tuple[float, float]]:
        """(minute, mean) of each part of the run after its first tenth."""
        kept = range(len(self.seconds) // 10, len(self.seconds))
        size = len(kept) / _PARTS
        found = []
        for part in range(_PARTS):
            index = kept[round(part * size) : round((part + 1) * size)]
            times = [self.seconds[i] for i in index]
            values = [self.columns[name][i] for i in index]
            if name == "batches":  # seconds of each, from how many were finished
                mean = (times[-1] - times[0]) / (values[-1] - values[0])
            else:
                mean = statistics.mean(values)
            found.append((statistics.mean(times) / 60, mean))
        return found


def slope(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Mean, slope and its standard error of the least-squares line through (x, y)."""
    x, y = ([point[axis] for point in points] for axis in (0, 1))
    line = statistics.linear_regression(x, y)
    rest = sum((b - line.intercept - line.slope * a) ** 2 for a, b in points) / (len(points) - 2)
    spread = sum((a - statistics.mean(x)) ** 2 for a in x)
    return statistics.mean(y), line.slope, math.sqrt(rest / spread)


def main() -> None:
    """Print one row for each job and quantity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as place:
        jobs = {}
        for name, command in JOBS.items():
            out = Path(place) / name
            words = [*command.split(), "--max-minutes", str(minutes), "--out", str(out)]
            process = subprocess.Popen([sys.executable, "-m", "dreamkd.cli", *words])
            jobs[name] = Samples(process, out)
        began = time.monotonic()
        while any(job.process.poll() is None for job in jobs.values()):
            time.sleep(_EVERY)
            for job in jobs.values():
                job.read(time.monotonic() - began)
        for name, job in jobs.items():
            assert job.process.returncode == _STOPPED, f"{name} ended early"
    print(
        f"{minutes:g} minutes; {describe()}\n\n| job | | mean | slope per hour | standard error |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, job in jobs.items():
        for column in job.columns:
            mean, per_minute, error = slope(job.parts(column))
            shown = "seconds a batch" if column == "batches" else column
            row = f"| `{name}` | {shown} | {mean:.4g} | {60 * per_minute:+.3g} | {60 * error:.2g} |"
            print(row)


if __name__ == "__main__":
    main()
