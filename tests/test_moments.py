"""Statistics of batches against values worked out by hand."""

import pytest
import torch

from dreamkd.moments import Moments, Stored, distances, sampling_level


def test_the_level_of_chance_by_hand() -> None:
    # Offsets 1, 2, 6 of mean 3: variance (4 + 1 + 9) / 2 = 7. Squares less 2 * 3 * offset: 4, 8,
    # 24 of mean 12, variance (64 + 16 + 144) / 2 = 112. sqrt(7 / 3) + sqrt(112 / 3), and the same
    # again times sqrt(2) of a call with two such channels.
    offset, square = torch.tensor([1.0, 2, 6])[:, None], torch.tensor([10.0, 20, 60])[:, None]
    images = Moments(offset.expand(3, 3), square.expand(3, 3))
    level = sampling_level(images, Stored.of([torch.ones(1), torch.ones(2)]))
    assert level == pytest.approx(5 * (7 / 3) ** 0.5 * (1 + 2**0.5))


@pytest.mark.parametrize(
    ("square", "value", "gradient"),
    [
        (7.0, 2 + 2, (1 - 2 * 2, 1.0)),  # variance 3, by 2 above what is stored
        (3.5, 2 + 1, (1.0, 0.0)),  # rounding: below 0 there is no variance, nor a way to less
    ],
)
def test_the_distance_of_a_channel_by_hand(
    square: float, value: float, gradient: tuple[float, float]
) -> None:
    moments = Moments(torch.tensor([2.0]), torch.tensor([square]))
    leaves = [tensor.requires_grad_() for tensor in moments]
    distance = distances(moments, Stored.of([torch.ones(1)]))
    assert distance.tolist() == [value]
    assert torch.cat(torch.autograd.grad(distance, leaves)).tolist() == list(gradient)


def test_what_is_stored_is_compared_in_float32() -> None:
    assert Stored.of([torch.ones(2, dtype=torch.bfloat16)]).var.dtype == torch.float32
