"""docs/cli.md is what the code says."""

import json
from dataclasses import fields

import pytest

from dreamkd.cli import docs, main
from dreamkd.config import COMMANDS, PRESETS, options
from dreamkd.distillation import Distillation
from dreamkd.errors import EXIT_CODES
from dreamkd.inversion import Inversion


def test_the_committed_page_is_current() -> None:
    text = docs.PAGE.read_text(encoding="utf-8")
    assert text == docs.page(), "run `python -m dreamkd.cli.docs --write`"


def test_the_page_holds_every_option_preset_and_exit_code() -> None:
    page = docs.page()
    for config in COMMANDS.values():
        assert all(f"| `{field.flag}" in page for field in options(config))
    for preset in PRESETS.values():
        assert all(f"| `{name}` |" in page for name in preset)
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXIT_CODES.items())


def test_every_key_of_a_result_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for command, made in (("invert", Inversion), ("distill", Distillation)):
        assert list(docs.RESULTS[command]) == [field.name for field in fields(made)]
    for command, more in (("inspect", []), ("eval", ["--data", "sklearn:digits", "--per-class"])):
        assert main([command, "digits_resnet14", "--json", "--quiet", *more]) == 0
        assert {*json.loads(capsys.readouterr().out)} == {*docs.RESULTS[command]}
