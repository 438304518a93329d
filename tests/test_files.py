"""Durable files, and room for them."""

from pathlib import Path

import pytest

from dreamkd import files
from dreamkd.errors import RunError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1_600_000, "1.526 MiB"),
        (3 * 2**30, "3 GiB"),
        (2**60, "1 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert files.size(count) == text


def test_room_is_stated_or_missed_before_the_work(tmp_path: Path) -> None:
    assert files.require_room(tmp_path, 2**20).startswith("up to 1 MiB to write, ")
    with pytest.raises(RunError, match=r"up to 1 EiB will be written and .* free; make room"):
        files.require_room(tmp_path, 2**60)
