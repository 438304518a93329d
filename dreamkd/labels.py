"""Which class each synthesised image shows, and how images are dealt into batches.

Images are laid out round by round: image i of every class before image i + 1 of any, each round in
an order of its own, so that a batch mixes classes. Raising the count later adds batches and changes
none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dreamkd.errors import ConfigError, nearest
from dreamkd.randomness import generator_for


def parse_classes(text: str, *, num_classes: int, class_names: Sequence[str] = ()) -> list[int]:
    """Class indices of `all`, `0-9,15`, or names, in the order given, each once.

    Raises: ConfigError: out of range, unknown name, or nothing at all.
    """
    if text.strip() == "all":
        return list(range(num_classes))
    chosen: dict[int, None] = {}
    for part in (p.strip() for p in text.split(",")):
        if part in class_names:
            chosen[list(class_names).index(part)] = None
        elif match := re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last or last >= num_classes:
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


def label_range(classes: Sequence[int], start: int, stop: int, *, seed: int) -> Tensor:
    """Labels of images start..stop-1 of the round-by-round layout: int64 (stop - start,)."""
    size = len(classes)
    rounds = range(start // size, (stop - 1) // size + 1)
    orders = [
        torch.randperm(size, generator=generator_for(seed, "labels", number)) for number in rounds
    ]
    positions = torch.cat(orders)[start - rounds[0] * size :][: stop - start]
    return torch.tensor(list(classes))[positions]


def plan_batches(
    count: int, size: int, *, made: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int]]:
    """Deal images 0..count-1 into batches [start, stop) of at most `size`, nearly equal.

    Equal, because a small last batch would have statistics of its own. Batches already `made` stay
    as they are. Each batch depends only on where it starts, so a plan continued is the plan.
    """
    batches = list(made)
    start = batches[-1][1] if batches else 0
    while start < count:
        remaining = count - start
        stop = start + math.ceil(remaining / math.ceil(remaining / size))
        batches.append((start, stop))
        start = stop
    return batches
