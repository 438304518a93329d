"""When a state is saved again, by a clock that is set by hand."""

from types import SimpleNamespace

import pytest

from dreamkd.clock import SaveClock


@pytest.mark.parametrize(
    ("least", "first", "second"),
    # Saving takes 3 seconds, from 1000 on: it is done again 50 times as long after it.
    [(0.0, 0.0, 1153.0), (20.0, 20.0, 1153.0), (200.0, 200.0, 1203.0)],
)
def test_saving_takes_a_fiftieth_of_the_time_at_most(
    least: float, first: float, second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("dreamkd.clock.time", SimpleNamespace(perf_counter=lambda: now))
    clock = SaveClock(least=least)
    now = first
    assert not clock.due()
    now = 1000.0
    assert clock.due()
    now = 1003.0
    clock.saved(1000.0)
    now = second
    assert not clock.due()
    now = second + 0.5
    assert clock.due()
