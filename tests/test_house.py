"""Rules of the house that a reader of one file would not see."""

import ast
from pathlib import Path

import pytest

import dreamkd
from dreamkd.augment import BORDERS
from dreamkd.config import COMMANDS, OTHER_IMAGES, options
from dreamkd.formats import FORMATS
from dreamkd.images import IMAGES
from dreamkd.losses import COMPETITION, PRIORS
from dreamkd.recipes import RECIPES

ROOT = Path(dreamkd.__file__).parent


def attributes(path: Path) -> set[str]:
    """Names read as `something.name` in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_option_is_read_by_something_that_acts_on_it() -> None:
    # Priors are read by name from their table; their effect is tested in test_synthesis.
    by_name = {"tv_l1", "tv_l2", "l2"}
    read = set().union(
        *(attributes(path) for path in ROOT.rglob("*.py") if path.parent.name != "config")
    )
    read |= attributes(ROOT / "config" / "presets.py")
    method = ast.parse((ROOT / "config" / "shared.py").read_text(encoding="utf-8"))
    read |= {
        node.attr
        for function in ast.walk(method)
        if isinstance(function, ast.FunctionDef) and function.name == "load_arguments"
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
    }
    fields = {field.name for config in COMMANDS.values() for field in options(config)}
    assert fields - read - by_name == set()


@pytest.mark.parametrize(
    "path", [p for p in ROOT.rglob("*.py") if "cli" not in p.parts], ids=lambda p: p.name
)
def test_nothing_below_the_command_line_prints(path: Path) -> None:
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "print" not in calls


def test_files_stay_readable() -> None:
    long = {
        path.name: lines
        for path in ROOT.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long


def test_tables_and_choices_name_the_same() -> None:
    invert, distill = (COMMANDS[name].__dataclass_fields__ for name in ("invert", "distill"))
    for name, table in (
        ("images", IMAGES),
        ("format", FORMATS),
        ("recipe", RECIPES),
        ("competition_loss", COMPETITION),
        ("jitter_border", BORDERS),
    ):
        for settings in (invert, distill):
            if name in settings:
                choices = settings[name].metadata["option"].choices
                assert set(choices) - {"auto"} == set(table)
    assert PRIORS.keys() <= invert.keys()
    assert OTHER_IMAGES.keys() <= IMAGES.keys()
