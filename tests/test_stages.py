"""How many steps a batch takes at each resolution, and what each course of them is."""

import pytest

from dreamkd.course import Course, full_steps, graphs, refining_steps, stages, steps_per_batch
from tests.conftest import invert_config


@pytest.mark.parametrize(
    ("lengths", "steps", "expected"),
    [
        ((1,), 7, [(1, 7)]),
        ((2, 1), 9, [(2, 6), (1, 3)]),
        ((1, 1, 1), 10, [(4, 3), (2, 3), (1, 4)]),
        ((1, 2), 2, [(1, 2)]),  # no step is left for half the resolution
    ],
)
def test_steps_are_shared_out_from_coarse_to_full(
    lengths: tuple[int, ...], steps: int, expected: list[tuple[int, int]]
) -> None:
    assert list(stages(invert_config(stages=lengths, image_steps=steps))) == expected


@pytest.mark.parametrize(
    ("given", "refining", "whole", "in_full", "kinds", "with_rival"),
    [
        # 6 steps at half the resolution cost as much as 6 / 4, and 3 at full resolution 3.
        ({"images": "pixels"}, 0, 9, 4.5, 2, 4),
        ({"images": "pyramid", "refine_steps": 5}, 5, 14, 9.5, 3, 5),
        ({"images": "pyramid", "refine_steps": 0}, 0, 9, 4.5, 2, 4),
    ],
)
def test_what_a_batch_takes(
    given: dict[str, object],
    refining: int,
    whole: int,
    in_full: float,
    kinds: int,
    with_rival: int,
) -> None:
    config = invert_config(stages=(2, 1), image_steps=9, **given)
    assert refining_steps(config) == refining
    assert steps_per_batch(config) == whole
    assert full_steps(config) == in_full
    assert (graphs(config), graphs(config, rival=True)) == (kinds, with_rival)


GIVEN = {
    "stages": (2, 1),
    "image_steps": 9,
    "images": "pyramid",
    "image_lr": 0.2,
    "image_beta1": 0.6,
    "image_beta2": 0.7,
    "image_schedule": "constant",
    "image_warmup": 9,
    "r_feature": 3.0,
    "refine_steps": 5,
    "refine_lr": 0.1,
    "refine_r_feature": 4.0,
}


def test_the_first_course_is_as_asked_and_the_second_one_of_pixels() -> None:
    config = invert_config(**GIVEN)
    assert Course.of(config, share=0.5) == Course(
        stages=((2, 6), (1, 3)),
        lr=0.1,
        betas=(0.6, 0.7),
        schedule="constant",
        warmup=9,
        r_feature=3.0,
        averaged=True,
    )
    assert Course.refining(config, share=0.5) == Course(
        stages=((1, 5),),
        lr=0.05,
        betas=(0.5, 0.9),
        schedule="cosine",
        warmup=0,
        r_feature=4.0,
        averaged=False,
    )
