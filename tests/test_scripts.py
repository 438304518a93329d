"""Every script that a page names takes the options that the page gives it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from dreamkd.examples import read_labelled
from dreamkd.models import Classifier
from tests.benchmarks import compare

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = [
    " ".join(command.split())
    for page in PAGES
    for command in re.findall(r"`(python -m tests\.[^`]+)`", page.read_text(encoding="utf-8"))
]


def test_the_pages_name_scripts() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize("command", sorted(set(NAMED)))
def test_a_script_takes_what_a_page_gives_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, module, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main()
    assert end.value.code == 0
    known = re.findall(r"(?<![\w-])--[\w-]+", capsys.readouterr().out)
    flags = {word.partition("=")[0] for word in words if re.match(r"--[\w-]+(=|$)", word)}
    assert flags <= {*known}


def test_the_real_images_of_a_comparison_have_the_teacher_s_numbers(
    tmp_path: Path, digits: Classifier
) -> None:
    for label in (3, 7):
        (tmp_path / "real" / str(label)).mkdir(parents=True)
        for k in range(4):
            image = Image.new("L", (16, 16), 10 * label + k)
            image.save(tmp_path / "real" / str(label) / f"{k}.png")
    shard = compare.real_images(str(tmp_path / "real"), digits, 8, 0, tmp_path)
    found = read_labelled(str(shard), digits)
    assert (found.examples.images[:, 0, 0, 0] // 10).tolist() == found.examples.labels.tolist()
    assert sorted(found.examples.labels.tolist()) == [3] * 4 + [7] * 4


@pytest.mark.slow
def test_a_comparison_has_the_same_student_of_as_many_images_in_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a preset, a weight and a competition that only some of the rows know."""
    quick = "--compile off --threads 1 --precision fp32"
    given = "--preset paper --batches 2 --batch-size 10 --seeds 0 --student-options"
    words = [*given.split(), f"{quick} --steps 4 --batch-size 8", "--real", "sklearn:digits:train"]
    words += ["--image-options", f"--image-steps 2 {quick}", "--statistics-options=--r-feature 1"]
    words += ["--competition-options=--competition 2", "--out", str(tmp_path)]
    pair = "--teacher digits_resnet14 --student cifar_resnet8 --eval-data sklearn:digits"
    monkeypatch.setattr(sys, "argv", ["compare", *pair.split(), *words])
    compare.main()
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 7
    runs = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("resolved.json")
    }
    students = [run["config"] for name, run in runs.items() if name.endswith("-student")]
    assert len(students) == 4
    for name in ("temperature", "cutmix", "weight_decay", "warmup", "steps", "lr"):
        assert len({student[name] for student in students}) == 1
    assert {json.loads(p.read_text())["images"] for p in tmp_path.rglob("result.json")} == {20}
