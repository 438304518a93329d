"""Which class each synthesised image shows, and how images are dealt into batches.

Images are laid out round by round: image i of every class before image i + 1 of any, each round in
an order of its own, so that a batch mixes classes. Raising the count later adds batches and changes
none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dreamkd.errors import ConfigError, nearest
from dreamkd.randomness import generator_for

_LARGEST_WEIGHT = 1000


def parse_classes(text: str, *, num_classes: int, class_names: Sequence[str] = ()) -> list[int]:
    """Class indices of `all`, `0-9,15`, or names, in the order given, each once.

    Raises: ConfigError: out of range, unknown name, or nothing at all.
    """
    if text.strip() == "all":
        return list(range(num_classes))
    chosen: dict[int, None] = {}
    misleading = [(k, name) for k, name in enumerate(class_names) if _is_number(name, other_than=k)]
    for part in (p.strip() for p in text.split(",")):
        if part in class_names:
            named = [label for label, name in enumerate(class_names) if name == part]
            if len(named) > 1:
                numbers = " and ".join(map(str, named))
                raise ConfigError(f"--classes: {part!r} is the name of {numbers}; give the number")
            chosen[named[0]] = None
        elif match := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part):
            if misleading:
                number, name = misleading[0]
                raise ConfigError(
                    f"--classes: {part!r} could be names or numbers, as class {number} has the "
                    f"name {name!r}; give names one by one"
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise ConfigError(f"--classes: {part!r} ends before it begins")
            if last >= num_classes:
                raise ConfigError(
                    f"--classes: {part!r} is not within 0-{num_classes - 1}, the model's classes"
                )
            chosen |= dict.fromkeys(range(first, last + 1))
        else:
            names = f" or names such as {class_names[0]!r}" if class_names else ""
            raise ConfigError(
                f"--classes: {part!r} is no class; legal: all, numbers and ranges within "
                f"0-{num_classes - 1}{names}{nearest(part, class_names)}"
            )
    return list(chosen)


def _is_number(name: str, *, other_than: int) -> bool:
    """Whether a name is the number of another class, as one would write it."""
    return bool(re.fullmatch("0|[1-9][0-9]{0,8}", name)) and name != str(other_than)


def parse_weights(
    text: str | None, classes: Sequence[int], *, num_classes: int, class_names: Sequence[str] = ()
) -> list[float]:
    """The weight of each of `classes`: `3:2,cat:0.5`; 1 where nothing is said.

    Raises: ConfigError: not of this form, not a class that is made, or not a number from 0 to 1000.
    """
    weights = dict.fromkeys(classes, 1.0)
    for part in text.split(",") if text else ():
        names, colon, number = part.rpartition(":")
        try:
            weight = float(number) if colon else math.nan
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= _LARGEST_WEIGHT:
            raise ConfigError(
                f"--class-weights: {part!r} is not CLASS:WEIGHT with a weight within "
                f"0..{_LARGEST_WEIGHT}"
            )
        try:
            named = parse_classes(names, num_classes=num_classes, class_names=class_names)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--classes", "--class-weights")) from None
        for label in named if names.strip() != "all" else classes:
            if label not in weights:
                raise ConfigError(f"--class-weights: class {label} is not among --classes")
            weights[label] = weight
    return list(weights.values())


def count_images(weights: Sequence[float], per_class: int) -> int:
    """Images of `per_class` rounds: of each class, its weight times as many, rounded down."""
    return sum(_share(weight, per_class) for weight in weights)


def label_range(
    classes: Sequence[int],
    start: int,
    stop: int,
    *,
    seed: int,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Labels of images start..stop-1 of the round-by-round layout: int64 (stop - start,).

    A class of weight w is in round i floor((i + 1) w) - floor(i w) times: once where w is 1.
    """
    weights = weights or [1.0] * len(classes)
    first = number = _round_of(start, weights)
    labels: list[Tensor] = []
    while count_images(weights, number) < stop:
        members = [
            label
            for label, weight in zip(classes, weights, strict=True)
            for _ in range(_share(weight, number + 1) - _share(weight, number))
        ]
        order = torch.randperm(len(members), generator=generator_for(seed, "labels", number))
        labels.append(torch.tensor(members, dtype=torch.int64)[order])  # of no member too
        number += 1
    before = count_images(weights, first)
    return torch.cat(labels)[start - before : stop - before]


def _share(weight: float, rounds: int) -> int:
    """Images of a class in the first `rounds` rounds; 0.1 of ten is one, whatever float says."""
    return math.floor(weight * rounds + 1e-9)


def _round_of(image: int, weights: Sequence[float]) -> int:
    """The round that holds image number `image`."""
    low, high = 0, 1
    while count_images(weights, high) <= image:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count_images(weights, middle) <= image else (low, middle)
    return low


def plan_batches(
    count: int, size: int, *, made: Mapping[int, tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """Deal images 0..count-1 into batches [start, stop) of at most `size`, nearly equal.

    Equal, because a small last batch would have statistics of its own. Batches already `made`, by
    number, stay as they are, and those missing between them take the images between them. Each
    batch depends only on where it starts, so a plan continued is the plan.
    """
    batches: list[tuple[int, int]] = []
    for k, (start, stop) in sorted((made or {}).items()):
        _deal(batches, until=start, parts=k - len(batches))
        batches.append((start, stop))
    remaining = count - (batches[-1][1] if batches else 0)
    if remaining > 0:
        _deal(batches, until=count, parts=math.ceil(remaining / size))
    return batches


def _deal(batches: list[tuple[int, int]], *, until: int, parts: int) -> None:
    """Add so many nearly equal batches, from where the last one stops; the larger ones first."""
    start = batches[-1][1] if batches else 0
    for left in range(parts, 0, -1):
        stop = start + math.ceil((until - start) / left)
        batches.append((start, stop))
        start = stop
