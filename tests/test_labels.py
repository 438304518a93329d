"""Which class each image shows, and how images are dealt into batches."""

import itertools

import pytest
import torch

from dreamkd.errors import ConfigError
from dreamkd.labels import (
    count_images,
    label_range,
    parse_classes,
    parse_weights,
    plan_batches,
)

NAMES = ("cat", "dog", "great white shark")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("all", [0, 1, 2]),
        ("0-2", [0, 1, 2]),
        ("2,0", [2, 0]),
        ("1, 1-2", [1, 2]),
        ("dog", [1]),
        ("great white shark,0", [2, 0]),
    ],
)
def test_parse_classes(text: str, classes: list[int]) -> None:
    assert parse_classes(text, num_classes=3, class_names=NAMES) == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "'3' is not within 0-2"),
        ("0-3", "'0-3' is not within 0-2"),
        ("2-1", "'2-1' ends before it begins"),
        ("", "'' is no class"),
        ("dgo", r"'dgo' is no class; .* \(did you mean 'dog'\?\)"),
        ("-1", "'-1' is no class"),
        ("99999999999999999999", "is no class"),
    ],
)
def test_parse_classes_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_classes(text, num_classes=3, class_names=NAMES)


@pytest.mark.parametrize("text", ["1-2", "0", "1,0", "4"])
def test_numbers_that_could_be_names_are_refused(text: str) -> None:
    """Of classes 1, 2, 3, the first of which has number 0."""
    with pytest.raises(ConfigError, match="class 0 has the name '1'; give names one by one"):
        parse_classes(text, num_classes=3, class_names=("1", "2", "3"))


def test_names_that_are_numbers_are_names() -> None:
    assert parse_classes("3,1", num_classes=3, class_names=("1", "2", "3")) == [2, 0]
    assert parse_classes("0-2", num_classes=3, class_names=("0", "1", "2")) == [0, 1, 2]
    assert parse_classes("0-1", num_classes=3, class_names=("01", "7a", "x")) == [0, 1]


def test_a_name_of_two_classes_is_refused() -> None:
    """ImageNet has two cranes."""
    with pytest.raises(ConfigError, match="'crane' is the name of 0 and 2; give the number"):
        parse_classes("crane", num_classes=3, class_names=("crane", "dog", "crane"))


def test_labels_are_laid_out_round_by_round() -> None:
    labels = label_range([3, 5, 9], 0, 12, seed=0)
    for start in range(0, 12, 3):
        assert sorted(labels[start : start + 3].tolist()) == [3, 5, 9]


def test_each_round_has_an_order_of_its_own() -> None:
    rounds = label_range(range(10), 0, 50, seed=0).view(5, 10).tolist()
    assert len({tuple(classes) for classes in rounds}) == 5


@pytest.mark.parametrize(
    ("weight", "rounds", "images"),
    [
        (0.57, 100, 57),  # 56.99999999999999 to a float
        (0.1, 10, 1),
        (0.5, 3, 1),
        (2.5, 3, 7),
    ],
)
def test_a_share_is_what_it_is_on_paper(weight: float, rounds: int, images: int) -> None:
    assert count_images([weight], rounds) == images
    labels = label_range([4, 7], 0, rounds + images, seed=0, weights=[weight, 1.0])
    assert labels.tolist().count(4) == images


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (None, [1, 1, 1]),
        ("dog:0.5", [1, 0.5, 1]),
        ("0-1:0,shark: fin:1000", [0, 0, 1000]),
        ("0:2,0:3", [3, 1, 1]),
        ("all:2,dog:3", [2, 3, 2]),
    ],
)
def test_parse_weights(text: str | None, weights: list[float]) -> None:
    names = ("cat", "dog", "shark: fin")
    assert parse_weights(text, [0, 1, 2], num_classes=3, class_names=names) == weights


def test_all_are_those_that_are_made() -> None:
    assert parse_weights("all:2,3:1", [3, 1], num_classes=5) == [1, 2]
    with pytest.raises(ConfigError, match="class 0 is not among --classes"):
        parse_weights("0-4:2", [3, 1], num_classes=5)


@pytest.mark.parametrize("part", ["0:1000.5", "0:-1", "0:nan", "0:", "0", "0:x"])
def test_a_weight_out_of_range_is_refused(part: str) -> None:
    line = rf"^--class-weights: '{part}' is not CLASS:WEIGHT with a weight within 0\.\.1000$"
    with pytest.raises(ConfigError, match=line):
        parse_weights(f"1:1,{part}", [0, 1, 2], num_classes=3)


def test_any_range_is_a_piece_of_the_same_layout() -> None:
    whole = label_range(range(10), 0, 50, seed=4)
    for start, stop in [(0, 1), (7, 23), (10, 20), (49, 50)]:
        assert torch.equal(label_range(range(10), start, stop, seed=4), whole[start:stop])


@pytest.mark.parametrize("count", [2, 7, 10, 260, 1000, 10000])
@pytest.mark.parametrize("size", [3, 64, 100, 256])
def test_a_plan_continued_is_the_plan(count: int, size: int) -> None:
    plan = plan_batches(count, size)
    for number in range(len(plan)):
        made = dict(enumerate(plan[:number]))
        assert plan_batches(count, size, made=made) == plan


@pytest.mark.parametrize("count", [7, 10, 13, 25])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_missing_batches_are_those_of_the_plan(count: int, size: int) -> None:
    """Whichever are there: several workers finish theirs in any order."""
    plan = plan_batches(count, size)
    for there in itertools.product([False, True], repeat=len(plan)):
        made = {k: batch for k, batch in enumerate(plan) if there[k]}
        assert plan_batches(count, size, made=made) == plan


@pytest.mark.parametrize(("count", "size"), [(260, 256), (1, 256), (256, 256), (1000, 64), (7, 3)])
def test_batches_are_as_equal_as_possible(count: int, size: int) -> None:
    batches = plan_batches(count, size)
    sizes = [stop - start for start, stop in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert [start for start, _ in batches] == [0, *[stop for _, stop in batches[:-1]]]
    assert batches[-1][1] == count


def test_raising_the_count_keeps_what_is_made() -> None:
    short = plan_batches(260, 256)
    made = dict(enumerate(short))
    longer = plan_batches(600, 256, made=made)
    assert longer[:2] == short
    assert longer[2:] == [(260, 430), (430, 600)]
    assert plan_batches(100, 256, made=made) == short
