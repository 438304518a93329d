"""What a shift brings in at the border: as padding and cutting out do it, gradients too."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkd.augment import BORDERS, Roll, draw_roll, draw_view, see
from dreamkd.models import Classifier
from dreamkd.observation import Observer

BLACK = torch.tensor([-2.0, -1.0, 0.5]).view(3, 1, 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded(image: Tensor, border: str, shift: int) -> Tensor:
    """(C, H, W) with `shift` pixels more on each side."""
    sides = (shift,) * 4
    if border == "black":
        return F.pad(image - BLACK, sides) + BLACK
    return F.pad(image[None], sides, mode={"mirror": "reflect", "wrap": "circular"}[border])[0]


def by_hand(images: Tensor, offsets: Roll, border: str, shift: int) -> Tensor:
    height, width = images.shape[2:]
    seen = []
    for image, down, right, mirrored in zip(images, *offsets, strict=True):
        whole = padded(image, border, shift)
        moved = whole[:, shift - down :, shift - right :][:, :height, :width]
        seen.append(moved)
        if mirrored:  # after its shift
            whole = whole.flip(2)
            seen[-1] = whole[:, shift - down :, shift + right :][:, :height, :width]
    return torch.stack(seen)


@pytest.mark.parametrize("border", BORDERS)
def test_a_border_is_what_padding_brings_in(border: str) -> None:
    images = torch.randn(24, 3, 7, 9, generator=generator(0)).requires_grad_()
    offsets = draw_roll(24, shift=3, flip=True, generator=generator(1))
    seen = BORDERS[border](images, offsets, BLACK)
    expected = by_hand(images, offsets, border, 3)
    torch.testing.assert_close(seen, expected)
    weights = torch.randn(seen.shape, generator=generator(2))
    (ours,) = torch.autograd.grad((seen * weights).sum(), images)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), images)
    torch.testing.assert_close(ours, theirs)


def test_images_are_observed_through_a_view(digits: Classifier) -> None:
    images = torch.randint(0, 256, (70, 1, 16, 16), dtype=torch.uint8, generator=generator(3))
    labels = torch.arange(70) % 10
    view = draw_view(70, shift=4, flip=False, smallest=None, generator=generator(4))
    seen = see(images / 255, view, border="black", black=torch.zeros(1, 1, 1))
    with Observer(digits, border="black", device="cpu") as observe:
        through = observe(images, labels, view=view)
        moved = observe((seen * 255).round().to(torch.uint8), labels)
        plain = observe(images, labels)
    assert through.r_feature == pytest.approx(moved.r_feature, rel=1e-4)
    assert through.r_feature != pytest.approx(plain.r_feature, rel=1e-2)
