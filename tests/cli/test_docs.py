"""docs/cli.md is what the code says."""

from dreamkd.cli import docs
from dreamkd.config import COMMANDS, PRESETS, options
from dreamkd.errors import EXIT_CODES


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
