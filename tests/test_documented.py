"""Every command of the README runs as it is typed there."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkd import models

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [
    part.strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    for part in line.split("&&")
    if part.strip().startswith(("dreamkd ", "torchrun "))
]

#: What a command leaves behind, and what must hold of it; the rest only has to say something.
FLOORS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "dreamkd distill --teacher digits": (
        "runs/digits/result.json",
        lambda found: (
            found["data_free"]
            and found["student_top1"] >= 0.97 * found["teacher_top1"]
            and found["noise_top1"] < found["student_top1"] - 20
        ),
    ),
    "dreamkd invert cifar10": (
        "runs/cifar/result.json",
        lambda found: found["images"] == 260 and found["teacher_top1"] >= 95,
    ),
}

#: Jobs of hours on a GPU run here at two steps on a few classes, 260 images at a quarter of their
#: steps, and the first command at half of its own; the rest as it stands.
QUARTER = "--image-steps 50"
HALF = "--image-steps 50 --steps 400"
SHORT = (
    "--classes 0-3 --per-class 1 --image-steps 2 --image-batch-size 4 --input-size 3,64,64 "
    "--compile off"
)
LEARNED = "--steps 2 --batch-size 4 --input-size 3,64,64 --compile off"


def calibrated(name: str, size: int, *, classes: int = 1000) -> torch.nn.Module:
    """A torchvision network with random weights and statistics of noise, as if it were trained."""
    module = models.load(
        f"torchvision:{name}", pretrained=False, num_classes=classes, input_size=(3, size, size)
    ).module
    module.train()
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return module.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working folder for all commands, in the README's order, with a filled hub cache."""
    place = tmp_path_factory.mktemp("readme")
    cache = place / "hub-cache" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(calibrated("resnet50", 64).state_dict(), cache / "resnet50-0676ba61.pth")
    torch.save(calibrated("resnet18", 64, classes=4).state_dict(), place / "t.pt")
    return place


def run(command: str, place: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    program, *words = shlex.split(command)
    modules = {"dreamkd": "dreamkd.cli", "torchrun": "torch.distributed.run"}
    beside = Path(sys.executable).parent  # where torchrun finds `dreamkd`
    return subprocess.run(
        [sys.executable, "-m", modules[program], *words],
        cwd=place,
        env={
            **os.environ,
            "TORCH_HOME": str(place / "hub-cache"),
            "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=1800,
        **options,
    )


def test_the_readme_has_commands() -> None:
    assert any(command.startswith("dreamkd distill --teacher digits") for command in COMMANDS)
    assert {command.split()[1] for command in COMMANDS} >= {"inspect", "invert", "distill", "eval"}
    assert any(command.startswith("torchrun ") for command in COMMANDS)
    for begins in FLOORS:
        assert sum(command.startswith(begins) for command in COMMANDS) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_command(command: str, place: Path) -> None:
    if "distill --teacher digits" in command:
        command += f" {HALF}"
    if "invert cifar10" in command:
        command += f" {QUARTER}"
    if "invert resnet50" in command:
        command += f" {SHORT}"
    if "--teacher t.pt" in command:
        command += f" --first-batches 1 --rounds 1 --image-batch-size 4 --image-steps 2 {LEARNED}"
    if "--teacher resnet50" in command:
        command += f" {LEARNED}"
    done = run(command.replace("--nproc-per-node 8", "--nproc-per-node 2"), place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for begins, (left, holds) in FLOORS.items():
        if command.startswith(begins):
            found = json.loads((place / left).read_text())
            assert holds(found), found


def test_distill_takes_a_training_checkpoint(tmp_path: Path) -> None:
    state = calibrated("resnet18", 32, classes=4).state_dict()
    torch.save({"model": state, "args": argparse.Namespace(a=1)}, tmp_path / "t.pt")
    done = run(
        "dreamkd distill --teacher t.pt --student resnet18 --json --input-size 3,32,32 "
        "--first-batches 1 --rounds 1 --steps 2 --batch-size 4 --image-batch-size 4 "
        "--image-steps 2 --jitter-border wrap --compile off",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["out"] == "runs/distill-t-1"
    assert "cifar_resnet18 is made for it" in done.stderr
    assert models.load(tmp_path / result["student"]).card.num_classes == 4


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S
    )
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 16, 16) 20 runs/invert-cifar_resnet14-1\n"
