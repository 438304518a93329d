"""What a student sees in a step, whole or in parts."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkd.config import settle
from dreamkd.examples import Examples
from dreamkd.views import view
from tests.conftest import distill_config


def examples(count: int = 40) -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return Examples(images, torch.arange(count) % 10)


def seen(step: int = 0, part: slice = slice(None), **given: object) -> tuple[Tensor, Tensor | None]:
    config = settle(distill_config(**given), input_size=(1, 16, 16))
    return view(config, examples(), step=step, classes=10, device="cpu", part=part)


def test_a_view_is_a_function_of_seed_and_step() -> None:
    first = seen()[0]
    assert torch.equal(first, seen()[0])
    assert not torch.equal(first, seen(step=1)[0])
    assert not torch.equal(first, seen(seed=1)[0])


@pytest.mark.parametrize("cutmix", [0.0, 0.5, 1.0])
def test_the_parts_make_up_the_whole(cutmix: float) -> None:
    """Also where images of one part are pasted into those of another."""
    for step in range(4):
        given = {"cutmix": cutmix, "hard_labels": 1.0}
        images, targets = seen(step, **given)
        parts = [seen(step, slice(start, start + 4), **given) for start in range(0, 16, 4)]
        assert torch.equal(torch.cat([part for part, _ in parts]), images)
        assert targets is not None
        assert torch.equal(torch.cat([t for _, t in parts if t is not None]), targets)


@pytest.mark.parametrize(
    ("given", "mirrored"),
    [
        ({}, True),
        ({"preset": "paper"}, True),  # whose images are not
        ({"flip": "off"}, False),
        ({"flip": "off", "student_flip": "on"}, True),
        ({"flip": "on", "student_flip": "off"}, False),
    ],
    ids=str,
)
def test_a_student_sees_half_of_the_images_mirrored_whatever_the_images_are(
    given: dict[str, str], mirrored: bool
) -> None:
    """Of images that are brighter from left to right; crops and padding take an eighth."""
    ramp = torch.arange(0, 160, 5, dtype=torch.uint8).expand(40, 3, 32, 32)
    config = settle(distill_config(cutmix=0.0, batch_size=64, **given), input_size=(3, 32, 32))
    shown = examples()._replace(images=ramp)
    images = view(config, shown, step=0, classes=10, device="cpu")[0].float()
    falling = images[..., 8:16].mean((1, 2, 3)) > images[..., 16:24].mean((1, 2, 3))
    assert (16 < int(falling.sum()) < 48) if mirrored else not falling.any()


def test_grey_images_are_not_mirrored_unasked() -> None:
    assert settle(distill_config(), input_size=(1, 16, 16)).student_flip == "off"


def test_images_are_not_mixed_unless_asked() -> None:
    """Every view is a shifted copy of one image, whose pixels it does not leave."""
    flat = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 16, 16)
    config = settle(distill_config(cutmix=0.0), input_size=(1, 16, 16))
    images, targets = view(
        config, examples()._replace(images=flat), step=0, classes=10, device="cpu"
    )
    assert targets is None
    assert torch.equal(images.amin((1, 2, 3)), images.amax((1, 2, 3)))
    assert len(images.unique()) > 5


def test_mixed_images_have_mixed_targets() -> None:
    """Of flat images that are as bright as their label: each class has its share of the pixels."""
    labels = examples().labels
    flat = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    config = settle(distill_config(hard_labels=1.0, cutmix=1.0), input_size=(1, 16, 16))
    images, targets = view(config, Examples(flat, labels), step=0, classes=10, device="cpu")
    assert targets is not None
    assert torch.allclose(targets, F.one_hot(images.flatten(1).long(), 10).float().mean(1))
    assert ((targets > 0).sum(1) == 2).any()
