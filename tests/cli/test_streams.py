"""Standard streams, and text that is safe to show there."""

import json
import math
import subprocess
import sys

import pytest

from dreamkd.cli import streams


def test_json_knows_no_infinity_however_deep_it_lies() -> None:
    result = {
        "a": math.nan,
        "list": [1.5, math.inf, [True, None, -math.inf]],
        "tuple": (math.nan, {"b": (math.inf, "é")}),
        7: {"c": [{"d": math.nan}]},
    }
    text = streams.document(result)
    assert text.endswith("}\n")
    assert text.isascii()
    assert json.loads(text) == {
        "a": None,
        "list": [1.5, None, [True, None, None]],
        "tuple": [None, {"b": [None, "é"]}],
        "7": {"c": [{"d": None}]},
    }


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed: str) -> None:
    code = (
        "import os, sys; from dreamkd.cli.streams import prepare_streams; prepare_streams()\n"
        "print('nobody reads this', file=sys.stderr); os.fstat(0)\n"
        "os._exit(7 if os.open(os.devnull, os.O_RDONLY) > 2 else 8)"
    )
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert streams.one_line("a\x1b[2J\nb é") == "a\\x1b[2J\\nb é"
