"""What pip installs: the bundled teachers and the index of architectures come along."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import dreamkd
from dreamkd import checkpoint, models

PACKAGE = Path(dreamkd.__file__).parent
DATA = ("models/index.json", "models/bundled/cifar10_resnet20.safetensors", "py.typed")


def test_what_is_installed_holds_its_data_and_works_from_another_folder(tmp_path: Path) -> None:
    code = "import dreamkd; from pathlib import Path; print(Path(dreamkd.__file__).parent)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    installed = Path(found.stdout.strip())
    assert [name for name in DATA if not (installed / name).is_file()] == []
    command = [sys.executable, "-m", "dreamkd.cli", "inspect", "digits_resnet14", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["invertible"] is True


@pytest.mark.parametrize("name", models.bundled())
def test_bundled_teachers_are_small_and_say_where_they_come_from(name: str) -> None:
    path = PACKAGE / "models" / "bundled" / f"{name}.safetensors"
    assert path.stat().st_size <= 1.2e6
    metadata = checkpoint.read(path).metadata
    assert "tests.benchmarks.teachers" in metadata["trained"]
    assert metadata["licence"].startswith("Apache-2.0")
    card = models.load(name).card
    assert (card.num_classes, len(card.class_names)) == (10, 10)


def test_the_version_is_the_distributions() -> None:
    assert version("dreamkd").count(".") >= 2
