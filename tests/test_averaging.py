"""What is remembered of the statistics of batches."""

import pytest
import torch

from dreamkd.averaging import MovingAverage
from dreamkd.errors import RunError
from dreamkd.moments import Average, Moments


def moments(value: float) -> Moments:
    return Moments(torch.full((3,), value), torch.full((3,), 2 * value))


def means(average: Average | None) -> tuple[list[float], float]:
    assert average is not None
    return average.moments.offset.tolist(), float(average.momentum)


def test_each_batch_moves_it_by_its_share() -> None:
    average = MovingAverage(0.75)
    average.begin(moments(0.0))
    assert means(average.former(counts=True)) == ([0.0] * 3, 0.0)
    average.add(moments(4.0))
    assert means(average.former(counts=True)) == ([4.0] * 3, 0.75)
    average.add(moments(0.0))
    assert means(average.former(counts=True)) == ([3.0] * 3, 0.75)
    assert means(average.former(counts=False)) == ([0.0] * 3, 0.0)


def test_without_momentum_nothing_is_remembered() -> None:
    average = MovingAverage(0.0)
    assert not average
    assert average.former(counts=True) is None
    assert average.state() == {}


def test_it_comes_back_from_its_state() -> None:
    kept, again = MovingAverage(0.9), MovingAverage(0.9)
    kept.add(moments(1.0))
    again.restore(kept.state(), device="cpu")
    assert means(again.former(counts=True)) == means(kept.former(counts=True))
    again.restore({}, device="cpu")
    assert again.state() == {}
    for names in (["0000.offset"], ["offset"], ["offset", "square", "0000.offset"]):
        with pytest.raises(RunError, match="of an older version; choose another --out"):
            again.restore(dict.fromkeys(names, torch.ones(3)), device="cpu")
