"""Every script that a page names takes the options that the page gives it."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

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
