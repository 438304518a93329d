"""When batches are made and the student is measured, worked out by hand."""

from dataclasses import replace

import pytest

from dreamkd import timetable
from tests.conftest import distill_config


def test_fresh_batches_arrive_over_two_thirds_of_the_steps() -> None:
    """After a bank of two, at thirds of 66.7 steps of 100."""
    config = distill_config(first_batches=2, rounds=3, steps=100)
    assert timetable.batches(config) == 5
    assert [timetable.begins(k, config) for k in range(5)] == [0, 0, 22, 44, 67]
    assert [timetable.competes(k, config) for k in range(5)] == [False, False, True, True, True]
    assert timetable.begins(1, replace(config, rounds=0)) == 0


@pytest.mark.parametrize(
    ("given", "any_competes"),
    [({}, True), ({"data": "x"}, False), ({"rounds": 0}, False), ({"competition": 0.0}, False)],
)
def test_batches_compete_where_there_is_a_student_to_compete_with(
    given: dict[str, object], any_competes: bool
) -> None:
    config = replace(distill_config(first_batches=2, rounds=3), **given)
    assert timetable.any_competes(config) is any_competes
    assert timetable.competes(2, config) is any_competes


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        # 20 rounds in 200 steps are one every 10, of 30 in all; the student is seen at a tenth.
        ({"eval_every": "auto"}, range(30, 300, 30)),
        ({"eval_every": 1}, range(10, 300, 10)),
        ({"eval_every": 4}, range(40, 300, 40)),
        ({"eval_every": 99}, []),
        ({"eval_every": "auto", "rounds": 2, "steps": 30}, [10, 20]),
        # Without rounds of its own, a hundredth of the steps is a part: 3 of 300.
        ({"eval_every": "auto", "recipe": "offline"}, range(30, 300, 30)),
        ({"eval_every": 7, "recipe": "offline"}, range(21, 300, 21)),
        ({"eval_every": 7, "rounds": 0}, range(21, 300, 21)),
    ],
)
def test_the_student_is_measured_between_rounds(given: dict[str, object], steps: range) -> None:
    config = replace(distill_config(rounds=20, steps=300), **given)
    assert timetable.looks(config) == {*steps}
