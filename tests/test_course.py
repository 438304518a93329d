"""How the images of a batch are optimised: rates by hand, views, what refinement leaves out."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dreamkd.augment import View, smallest_crop
from dreamkd.config import ImageConfig, settle
from dreamkd.course import Course
from dreamkd.engine import rate
from dreamkd.images import Generated, Images
from dreamkd.models import Classifier
from dreamkd.objective import Loss, Objective
from dreamkd.randomness import generator_for
from tests.conftest import invert_config
from tests.test_synthesis import LABELS, synthesise, synthesiser_of


def settings(**given: object) -> ImageConfig:
    return settle(invert_config(**given), input_size=(1, 16, 16))


def test_rates_by_hand() -> None:
    assert [rate(step, 10, warmup=2) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    # (1 + cos(pi (6 - 2) / (10 - 2))) / 2 = 1/2 halfway between the warm-up and the end.
    assert rate(6, 10, warmup=2) == pytest.approx(0.5)
    assert rate(10, 10) == pytest.approx(0.0)
    assert rate(9, 10, schedule="constant") == 1.0


def moved(images: Images, course: Course, *, step: int) -> Iterator[float]:
    """How far the first step of Adam, which is as long as its rate, moves each group."""
    images.begin(2, generator_for(0, "batch", 0))
    groups = [group["params"] for group in images.parameters()]
    before = [[tensor.detach().clone() for tensor in tensors] for tensors in groups]
    optimizer = course.optimizer(images)
    course.set_rate(optimizer, step, 4)
    images.inputs().square().sum().backward()
    optimizer.step()
    for tensors, old in zip(groups, before, strict=True):
        yield max(float((a.detach() - b).abs().max()) for a, b in zip(tensors, old, strict=True))


@pytest.mark.parametrize(("step", "lr"), [(0, 0.005), (1, 0.01), (2, 0.01), (3, 0.01)])
def test_a_stage_warms_up_for_half_of_its_steps_and_latents_go_further(
    step: int, lr: float
) -> None:
    given = {"image_steps": 10, "image_warmup": 10, "image_schedule": "constant"}
    course = Course.of(settings(image_lr=0.01, **given))
    images = Generated((1, 8, 8), mean=(0.5,), std=(0.25,), clip=True)
    assert [*moved(images, course, step=step)] == pytest.approx([lr, lr * 10 / 3], rel=1e-3)


@pytest.mark.parametrize("clip", ["on", "off"])
def test_refined_pixels_are_legal_unless_that_is_off(digits: Classifier, clip: str) -> None:
    given = {"images": "pyramid", "image_lr": 50.0, "refine_steps": 1, "l2": 1.0}
    batch = synthesise(digits, clip=clip, **given)
    # Of 256 pixels up to (1 - 0.305) / 0.352 = 1.975 from the mean the norm is at most 31.6.
    assert (batch.terms["l2"] <= 31.6) is (clip == "on")


def test_former_batches_do_not_count_where_pixels_are_refined(digits: Classifier) -> None:
    """Of a generator that hardly matches statistics, they have no other way to the images."""
    given = {"images": "generator", "refine_steps": 2, "refine_lr": 0.5, "r_feature": 1e-30}
    seconds = []
    for momentum in (0.0, 0.9):
        with synthesiser_of(digits, bn_momentum=momentum, **given) as synthesiser:
            batches = [
                synthesiser.batch(LABELS, generator=generator_for(0, "batch", k)) for k in (0, 1)
            ]
        seconds.append(batches[1].images)
    assert torch.equal(*seconds)


def test_shifts_are_of_the_resolution_and_crops_of_the_course(
    digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, View]] = []
    evaluate = Objective.__call__

    def watched(self: Objective, x: Any, labels: Any, view: View, **given: Any) -> Loss:
        seen.append((given["factor"], view))
        return evaluate(self, x, labels, view, **given)

    monkeypatch.setattr(Objective, "__call__", watched)
    synthesise(digits, image_steps=10, stages=(1, 1), jitter=4, crop=0.25, r_feature=0.0)
    for factor, largest in ((2, 2), (1, 4)):
        shifts = torch.stack([view.roll.down for found, view in seen if found == factor])
        assert int(shifts.abs().max()) == largest
    for step, (_, view) in enumerate(seen):
        assert view.crop is not None
        area, least = view.crop.rows * view.crop.columns, smallest_crop(step / 10, end=0.25)
        assert least - 1e-6 <= float(area.min()) <= least + 0.3 * (1 - least) + 1e-6
