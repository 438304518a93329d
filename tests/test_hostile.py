"""Mutated files, as many as the default tests have time for: see `tests.reliability.fuzz`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability import fuzz


@pytest.mark.parametrize("kind", [fuzz.checkpoints, fuzz.runs, fuzz.states])
def test_mutated_files_are_refused_or_right(
    kind: Callable[..., fuzz.Tally], tmp_path: Path
) -> None:
    tally = kind(tmp_path, count=200, seed=1000)
    assert tally.refused
    assert tally.accepted  # a file that nothing accepts would show nothing
