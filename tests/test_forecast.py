"""How long a job still takes, worked out by hand."""

import pytest

from dreamkd.forecast import Forecast


def test_what_is_left_is_of_all_kinds_of_work() -> None:
    forecast = Forecast()
    forecast.ahead = {"batches": 3, "steps": 100}
    forecast.reached("batches", 1, 60.0)
    assert forecast.left() is None  # of a step nothing is known yet
    forecast.reached("steps", 25, 50.0)
    assert forecast.left() == 3 * 60 + 100 * 2
    forecast.ahead["batches"] = 0.5
    assert forecast.left() == 0.5 * 60 + 100 * 2


def test_what_was_done_once_is_soon_forgotten() -> None:
    forecast = Forecast()
    forecast.ahead = {"steps": 10}
    forecast.reached("steps", 25, 75.0)  # 3 a step, with what was compiled
    forecast.reached("steps", 50, 100.0)  # 1 a step
    assert forecast.left() == pytest.approx(10 * (3 + 0.3 * (1 - 3)))


def test_what_is_expected_counts_until_it_is_known_better() -> None:
    forecast = Forecast()
    forecast.ahead = {"batches": 2, "steps": 0}
    forecast.expect(batches=10.0)
    assert forecast.left() == 20
    forecast.reached("batches", 0, 0.0)  # of none nothing is learned
    assert forecast.left() == 20
    forecast.reached("batches", 1, 20.0)
    assert forecast.left() == pytest.approx(2 * 13)


def test_a_student_that_begins_anew_costs_what_it_did() -> None:
    forecast = Forecast()
    forecast.reached("steps", 50, 100.0)
    forecast.ahead = {"steps": 100}
    forecast.reached("steps", 0, 0.0)
    assert forecast.left() == 200
    forecast.reached("steps", 25, 50.0)
    assert forecast.left() == 200
