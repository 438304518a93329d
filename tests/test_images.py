"""Parameterisations: what they start from, what they reach, what they carry."""

import math

import pytest
import torch
from torch.nn import functional as F

from dreamkd.images import IMAGES, Generated, Images, Pixels, Pyramid
from dreamkd.images.generator import _DoublingConv
from dreamkd.images.pixels import greyed, pink

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def made(kind: str, size: tuple[int, int, int] = (3, 12, 10), *, clip: bool = True) -> Images:
    return IMAGES[kind](size, mean=MEAN, std=STD, clip=clip, seed=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def descend(images: Images, target: torch.Tensor, *, steps: int, lr: float) -> float:
    """Squared distance to `target` after `steps` of Adam."""
    optimizer = torch.optim.Adam(images.parameters(), lr=lr)
    for _ in range(steps):
        loss = (images.inputs() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        images.learn()
        optimizer.step()
        images.project()
    return float((images.inputs().detach() - target).square().mean())


@pytest.mark.parametrize("kind", IMAGES)
def test_a_batch_has_its_shape_and_is_a_function_of_the_generator(kind: str) -> None:
    first, again, other = (made(kind) for _ in range(3))
    for images, seed in ((first, 1), (again, 1), (other, 2)):
        images.begin(4, generator(seed))
    assert first.inputs().shape == (4, 3, 12, 10)
    assert torch.equal(first.inputs(), again.inputs())
    assert not torch.equal(first.inputs(), other.inputs())


@pytest.mark.parametrize("kind", IMAGES)
def test_images_stay_within_the_legal_range(kind: str) -> None:
    images = made(kind)
    images.begin(4, generator())
    descend(images, torch.full((4, 3, 12, 10), 50.0), steps=30, lr=1.0)
    pixels = images.inputs().detach() * images.range.std + images.range.mean
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["pixels", "pyramid"])
def test_any_image_can_be_reached(kind: str) -> None:
    images = made(kind, clip=False)
    images.begin(2, generator())
    target = torch.randn(2, 3, 12, 10, generator=generator(9))
    assert descend(images, target, steps=300, lr=0.05) < 1e-3


def test_pink_noise_has_the_variance_of_white_and_the_spectrum_of_photographs() -> None:
    white = torch.randn(400, 3, 32, 24, generator=generator())
    coloured = pink(white)
    assert float(coloured.var()) == pytest.approx(1, rel=0.05)
    power = torch.fft.fft2(coloured).abs().square().mean((0, 1))
    # Along one axis, at 2 and 8 cycles per side: amplitudes as 4 to 1, powers as 16 to 1.
    assert float(power[2, 0] / power[8, 0]) == pytest.approx(16, rel=0.25)
    # Below one cycle per longer side the spectrum is flat.
    assert float(power[0, 0] / power[1, 0]) == pytest.approx(1, rel=0.25)


def test_pixels_start_from_the_noise_that_is_asked_for() -> None:
    starts = {}
    for start in ("white", "pink"):
        images = Pixels((3, 12, 10), mean=MEAN, std=STD, clip=False, start=start)
        images.begin(2, generator())
        starts[start] = images.inputs().detach()
    assert torch.equal(starts["white"], torch.randn(2, 3, 12, 10, generator=generator()))
    pinked = pink(starts["white"])
    assert torch.equal(starts["pink"][:, :2], pinked[:, :2])
    # The last channel is divided by 0.3: 0.25 of the pixels' range is 0.25 / 0.3 there.
    torch.testing.assert_close(starts["pink"][:, 2], pinked[:, 2] * 0.25 / 0.3)


def test_natural_noise_is_mostly_grey_and_as_strong_as_before() -> None:
    noise = torch.randn(4000, 3, 8, 8, generator=generator())
    grey = greyed(noise)
    channels = grey.movedim(1, 0).flatten(1)
    spread = channels.std(1)
    torch.testing.assert_close(spread, torch.ones(3), rtol=0.02, atol=0)
    # All that the channels do not share is 0.1 of their variance: g - (1 - g) / (C - 1) = 0.85.
    expected = torch.full((3, 3), 0.85).fill_diagonal_(1)
    torch.testing.assert_close(torch.corrcoef(channels), expected, rtol=0.02, atol=0)
    one = noise[:, :1]
    assert torch.equal(greyed(one), one)


@pytest.mark.parametrize("channels", [1, 3])
def test_natural_noise_differs_from_image_to_image(channels: int) -> None:
    std = 0.2
    images = Pixels(
        (channels, 32, 32), mean=[0.5] * channels, std=[std] * channels, clip=False, start="natural"
    )
    images.begin(2000, generator())
    x = images.inputs().detach() * std  # a pixel's range is 1
    brightness = x.mean((1, 2, 3))
    assert float(brightness.mean()) == pytest.approx(0, abs=0.01)
    hue = 0.03 / channels**0.5
    assert float(brightness.std()) == pytest.approx(math.hypot(0.13, hue), rel=0.08)
    contrast = x.std((2, 3)).mean(1)
    low, high = contrast.quantile(0.02), contrast.quantile(0.98)
    assert float(high / low) == pytest.approx(1.0 / 0.4, rel=0.15)
    assert float(high) == pytest.approx(std, rel=0.15)


def test_a_pyramid_has_a_level_for_each_power_of_two() -> None:
    images = made("pyramid")
    assert isinstance(images, Pyramid)
    images.begin(1, generator())
    # Of 12 x 10: sixteenths, eighths, quarters, halves, whole.
    assert [tuple(level.shape[2:]) for level in images.levels] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (6, 5),
        (12, 10),
    ]


def test_a_pyramid_starts_from_equal_parts_of_noise() -> None:
    images = made("pyramid")
    assert isinstance(images, Pyramid)
    images.begin(2000, generator())
    spread = [float(level.detach().std()) for level in images.levels]
    assert spread == pytest.approx([1 / 5] * 5, rel=0.05)


def test_coarse_levels_move_the_whole_image() -> None:
    images = made("pyramid", clip=False)
    assert isinstance(images, Pyramid)
    images.begin(1, generator())
    before = images.inputs().detach()
    with torch.no_grad():
        images.levels[0].add_(1)
    assert torch.allclose(images.inputs(), before + 1, atol=1e-5)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", IMAGES)
def test_images_are_float32_whatever_they_are_computed_in(kind: str, clip: bool) -> None:
    images = made(kind, clip=clip)
    images.begin(2, generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert images.inputs().dtype == torch.float32


def test_pixels_that_are_taken_are_legal_and_a_copy() -> None:
    images = made("pixels")
    assert isinstance(images, Pixels)
    given = torch.full((2, 3, 12, 10), 99.0)
    images.take(given)
    assert float(images.inputs().detach().max()) < 99 == float(given.max())


def test_a_generator_learns_from_batch_to_batch() -> None:
    images = made("generator", (3, 8, 8))
    target = torch.linspace(-1, 1, 192).view(1, 3, 8, 8).expand(4, -1, -1, -1)
    reached = []
    for k in range(24):
        images.begin(4, generator(k))
        reached.append(descend(images, target, steps=3, lr=3e-3))
        images.end(lr=3e-3)
    first, last = (sum(part) for part in (reached[:4], reached[-12:]))
    assert last / 12 < 0.7 * first / 4  # a batch alone varies by a third


def test_the_start_takes_one_step_of_adam_at_the_rate_of_all_inner_steps_by_hand() -> None:
    images = made("generator", (3, 8, 8))
    before = images.state()["meta.linear.weight"].clone()
    images.begin(4, generator())
    descend(images, torch.ones(4, 3, 8, 8), steps=3, lr=1e-3)
    images.end(lr=1e-3)
    after = images.state()
    # The first step is as long as the rate. Moments: (1 - 0.5) g and (1 - 0.999) g^2.
    moved = (after["meta.linear.weight"] - before).abs().median()
    assert float(moved) == pytest.approx(3e-3, rel=1e-2)
    ratio = after["exp_avg.linear.weight"].square() / after["exp_avg_sq.linear.weight"]
    assert float(ratio.median()) == pytest.approx(0.5**2 / 0.001, rel=1e-3)


def test_a_generator_continues_from_its_state() -> None:
    def run(images: Images, batches: range) -> torch.Tensor:
        for k in batches:
            images.begin(2, generator(k))
            descend(images, torch.zeros(2, 3, 8, 8), steps=2, lr=3e-3)
            found = images.inputs().detach()
            images.end(lr=3e-3)
        return found

    whole, first, second = (made("generator", (3, 8, 8)) for _ in range(3))
    run(first, range(2))
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert torch.equal(run(second, range(2, 4)), run(whole, range(4)))
    second.restore({})
    assert torch.equal(run(second, range(4)), run(made("generator", (3, 8, 8)), range(4)))


def test_only_a_generator_needs_its_batches_in_order() -> None:
    assert [kind.sequential for kind in (Pixels, Pyramid, Generated)] == [False, False, True]


@pytest.mark.parametrize("kind", IMAGES)
def test_what_is_carried_is_as_large_as_said(kind: str) -> None:
    images = made(kind)
    images.begin(2, generator())
    descend(images, torch.zeros(2, 3, 12, 10), steps=1, lr=0.1)
    images.end(lr=0.1)
    carried = sum(t.numel() * t.element_size() for t in images.state().values() if t.ndim)
    assert carried == IMAGES[kind].carried((3, 12, 10))


def test_doubling_within_a_convolution_is_doubling_before_it() -> None:
    doubling = _DoublingConv(5, 4).double()
    x = torch.randn(2, 5, 6, 7, generator=generator()).double()
    weight = torch.randn(4, 5, 3, 3, generator=generator(1)).double().requires_grad_()
    doubling.weight = torch.nn.Parameter(weight.detach())
    wanted = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)
    found = doubling(x)
    assert torch.allclose(found, wanted, atol=1e-12)
    for output in (found, wanted):
        output.square().sum().backward()
    assert doubling.weight.grad is not None
    assert weight.grad is not None
    assert torch.allclose(doubling.weight.grad, weight.grad, atol=1e-9)
