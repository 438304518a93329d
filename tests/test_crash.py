"""Kill -9 at random moments, the same command again: the end equals the uninterrupted run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMMON = "--threads 1 --precision fp32 --compile off --quiet"
INVERT = f"invert digits_resnet14 --per-class 12 --image-steps 60 --image-batch-size 20 {COMMON}"
DISTILL = (
    "distill --teacher digits_resnet14 --student cifar_resnet8 --first-batches 2 --rounds 3 "
    f"--image-steps 30 --image-batch-size 20 --steps 200 --batch-size 32 {COMMON}"
)
GENERATOR = (
    "invert digits_resnet14 --per-class 12 --images generator --image-steps 40 "
    f"--image-batch-size 20 {COMMON}"
)
KILLS = 6
STORED = ("shards", "images", "records")


def start(command: str, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dreamkd.cli", *command.split(), "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(command: str, out: Path) -> tuple[int, str]:
    process = start(command, out)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output.decode()


def facts(folder: Path) -> dict[str, bytes]:
    """What must come out the same; nothing else may lie in the folders of the images."""
    names = ("manifest.jsonl", "resolved.json", "student.safetensors", "state-images.safetensors")
    files = [path for name in names if (path := folder / name).exists()]
    files += [p for name in STORED for p in (folder / name).rglob("*") if p.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "command",
    [INVERT, f"{INVERT} --format folder", GENERATOR, DISTILL],
    ids=["shards", "folder", "generator", "distill"],
)
def test_killed_at_random_moments_it_ends_as_if_never_killed(command: str, tmp_path: Path) -> None:
    began = time.monotonic()
    code, output = finish(command, tmp_path / "whole")
    lasted = time.monotonic() - began
    assert code == 0, output
    draws = random.Random(0)
    for _ in range(KILLS):
        process = start(command, tmp_path / "run")
        try:
            process.communicate(timeout=draws.uniform(0.3, 1.0) * lasted)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    code, output = finish(command, tmp_path / "run")
    assert code == 0, output
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    tmp_path: Path, number: int, code: int
) -> None:
    process = start(INVERT.replace("--image-steps 60", "--image-steps 600"), tmp_path / "run")
    while not (tmp_path / "run" / "progress.json").exists():
        assert process.poll() is None
        time.sleep(0.1)  # another process: there is nothing to wait on but its file
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output.decode()
    assert "the same command continues" in output.decode()
