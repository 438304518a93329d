"""What an option takes as a Python value."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamkd.config import InvertConfig, merge, read_file
from dreamkd.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "text"),
    [("3", "3"), (Path("a/b"), "a/b"), (3, "3"), (0.5, "0.5"), (np.int64(3), "3")],
)
def test_text_may_be_a_path_or_a_number(value: Any, text: str) -> None:
    built = merge(InvertConfig, {"model": value, "verifier": [value]})
    assert (built.model, built.verifier) == (text, (text,))


@pytest.mark.parametrize("value", [object(), date(2020, 1, 1), range(3), b"net", {1}])
def test_what_is_no_text_is_refused_by_its_type(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(ConfigError, match=f"^--out: a value of type {kind} is not text$"):
        merge(InvertConfig, {"model": "m", "out": value})


@pytest.mark.parametrize(("name", "content"), [("a.toml", "seed = 5"), ("a.json", '{"seed": 5}')])
def test_settings_may_begin_with_a_byte_order_mark(name: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8-sig")
    assert read_file(file, known=()) == {"seed": 5}
