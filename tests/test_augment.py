"""Views: every image its own draw, values only moved, gradients moved back."""

import pytest
import torch
from torch.nn import functional as F

from dreamkd.augment import (
    Box,
    Window,
    crop,
    cut_mix,
    draw_box,
    draw_crop,
    draw_roll,
    random_crop,
    roll,
    smallest_crop,
)
from dreamkd.batch import Best
from dreamkd.resampling import resample, resampling


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_roll_moves_each_image_by_its_own_shift() -> None:
    images = torch.arange(4 * 8 * 8.0).view(4, 1, 8, 8)
    offsets = draw_roll(4, shift=2, flip=False, generator=generator())
    moved = roll(images, offsets)
    shifts = []
    for image, result in zip(images, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(image.roll((dy, dx), (1, 2)), result)
        ]
        assert len(found) == 1
        shifts += found
    assert len(set(shifts)) > 1


def test_flip_mirrors_some_images_and_not_all() -> None:
    images = torch.arange(16 * 3 * 4.0).view(16, 1, 3, 4)
    moved = roll(images, draw_roll(16, shift=0, flip=True, generator=generator()))
    mirrored = [torch.equal(m, i.flip(2)) for m, i in zip(moved, images, strict=True)]
    kept = [torch.equal(m, i) for m, i in zip(moved, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 16


def test_the_gradient_of_roll_is_the_inverse() -> None:
    images = torch.randn(5, 2, 6, 7, generator=generator(1)).requires_grad_()
    offsets = draw_roll(5, shift=3, flip=True, generator=generator(2))
    weights = torch.randn(5, 2, 6, 7, generator=generator(3))
    (gradient,) = torch.autograd.grad((roll(images, offsets) * weights).sum(), images)
    # Moving the gradient like an image gives the weights back.
    assert torch.equal(roll(gradient, offsets), weights)


def test_draws_are_functions_of_the_generator() -> None:
    draws = [draw_roll(3, shift=2, flip=True, generator=generator(s)) for s in (7, 7, 8)]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


def test_shifts_are_drawn_from_all_that_are_asked_for() -> None:
    draws = draw_roll(200, shift=2, flip=False, generator=generator())
    assert set(draws.down.tolist()) == set(draws.right.tolist()) == {-2, -1, 0, 1, 2}
    assert not torch.equal(draws.down, draws.right)


def test_random_crop_equals_pad_and_crop() -> None:
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8, generator=generator(4))
    crops = random_crop(images, draw_roll(32, shift=2, flip=False, generator=generator(5)))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    places = set()
    for cut, source in zip(crops, padded, strict=True):
        found = {
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(source[:, top : top + 8, left : left + 8], cut)
        }
        assert found
        places |= found
    assert len(places) > 10


def test_random_crop_without_padding_or_flip_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=generator(6))
    offsets = draw_roll(4, shift=0, flip=False, generator=generator())
    assert torch.equal(random_crop(images, offsets), images)


def test_cut_mix_pastes_one_box_of_one_other_image() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 3, 12, 16)
    others = torch.randperm(64, generator=generator())
    mixed, told = cut_mix(images, images[others], draw_box(64, generator=generator()))
    shares = []
    for own, result in enumerate(mixed):
        foreign = result[0] != own
        assert len(result[0][foreign].unique()) <= 1
        rows, columns = foreign.any(1), foreign.any(0)
        assert torch.equal(foreign, rows[:, None] & columns[None]), "a rectangle"
        assert torch.equal(result, result[:1].expand_as(result)), "the same in every channel"
        shares.append(float(foreign.float().mean()))
        assert set(result[0][foreign].tolist()) <= {int(others[own])}
        if int(others[own]) != own:
            assert shares[-1] == pytest.approx(float(told[own]))
    assert max(shares) > 0.4
    assert min(shares) < 0.1


def test_the_box_of_cut_mix_by_hand() -> None:
    # A quarter of the area is half of each side: whole in the middle, a quarter of it in a corner.
    images, box = torch.zeros(2, 1, 8, 8), Box(*torch.tensor([[0.25, 0.25], [0.5, 0], [0.5, 1]]))
    mixed, told = cut_mix(images, images + 1, box)
    wanted = torch.zeros(2, 1, 8, 8)
    wanted[0, :, 2:6, 2:6] = wanted[1, :, :2, 6:] = 1
    assert torch.equal(mixed, wanted)
    assert told.tolist() == [1 / 4, 1 / 16]


@pytest.mark.parametrize("after", [(8, 8), (3, 5), (13, 4), (16, 24)], ids=str)
def test_resampling_is_the_usual_one(after: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 8, 12, generator=generator())
    found = resample(images, resampling((8, 12), after, device="cpu"))
    wanted = F.interpolate(images, after, mode="bilinear", antialias=True, align_corners=False)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_crop_resizes_the_window_of_each_image() -> None:
    ramp = torch.arange(8.0).expand(2, 3, 8, 8)  # the value is the column
    whole = Window(*torch.tensor([[1.0, 1], [1, 0.5], [0, 0], [0, 1]]))
    cropped = crop(ramp, whole)
    assert torch.allclose(cropped[0], ramp[0])
    # The right half, at twice the size: pixel w shows column 4 + (w + 1/2) / 2 - 1/2.
    wanted = (4 + (torch.arange(8) + 0.5) / 2 - 0.5).clamp_max(7)
    assert torch.allclose(cropped[1], wanted.expand(3, 8, 8))
    turned = Window(*torch.tensor([[1.0, 0.5], [1, 1], [0, 1], [0, 0]]))
    assert torch.allclose(crop(ramp.mT, turned), cropped.mT)


def test_crops_shrink_along_half_a_cosine() -> None:
    assert [smallest_crop(share, end=0.2) for share in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert smallest_crop(0.5, end=1.0) == 1.0


def test_a_crop_is_no_smaller_than_asked_and_inside() -> None:
    window = draw_crop(500, smallest=0.3, generator=generator())
    area = window.rows * window.columns
    assert 0.3 - 1e-6 <= float(area.min()) < 0.4
    assert 0.9 < float(area.max()) <= 1 + 1e-6
    assert 0 <= float(torch.stack(window).min()) <= float(torch.stack(window).max()) <= 1
    aspect = window.columns / window.rows
    assert 0.75 - 1e-6 <= float(aspect.min()) < 0.77 < 1.3 < float(aspect.max()) <= 4 / 3 + 1e-6
    assert float((window.left - window.top).abs().max()) > 0.9, "each place its own draw"
    whole = draw_crop(5, smallest=1.0, generator=generator())
    images = torch.rand(5, 1, 6, 7, generator=generator())
    assert torch.allclose(crop(images, whole), images, atol=1e-6)


def test_the_best_of_each_image_is_kept() -> None:
    versions = torch.arange(3.0)[:, None, None, None, None].expand(3, 2, 1, 1, 1)
    best = Best()
    for version, scores in zip(versions, ([3.0, 1.0], [2.0, 2.0], [2.5, 0.5]), strict=True):
        best.offer(version, torch.tensor(scores))
    assert best.images.flatten().tolist() == [1.0, 2.0]
