"""What a student sees in each of its steps: a function of (seed, step), whoever computes it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkd.augment import cut_mix, draw_box, draw_roll, part_of, random_crop
from dreamkd.config import DistillConfig
from dreamkd.examples import Examples
from dreamkd.randomness import generator_for

#: All images of a batch.
ALL = slice(None)


def view(
    config: DistillConfig,
    examples: Examples,
    *,
    step: int,
    classes: int,
    device: str,
    part: slice = ALL,
) -> tuple[Tensor, Tensor | None]:
    """Cropped (mirrored, mixed) images of a uniform sample; teacher and student see the same.

    Args:
        config: settled.
        part: the images wanted of the batch; whatever it is, they are the same.
    Returns: uint8 (B, C, H, W); with hard labels also the targets, (B, classes) that sum to 1.
    """
    count, size = int(config.batch_size), examples.images.shape[2:]
    generator = generator_for(config.seed, "student", step)
    index = torch.randint(len(examples.images), (count,), generator=generator)
    shift, flip = min(size) // 8, config.student_flip == "on"
    offsets = draw_roll(count, shift=shift, flip=flip, generator=generator)

    def seen(rows: Tensor) -> tuple[Tensor, Tensor | None]:
        images = examples.draw(index[rows], device=device)
        targets = None
        if config.hard_labels:
            labels = examples.labels[index[rows]].to(device, non_blocking=True)
            targets = F.one_hot(labels, classes).float()
        return random_crop(images, part_of(offsets, rows)), targets

    rows, chance = torch.arange(count)[part], float(config.cutmix)
    if not chance or float(torch.rand((), generator=generator)) >= chance:
        return seen(rows)
    others = torch.randperm(count, generator=generator)[rows]
    box = part_of(draw_box(count, generator=generator), rows)
    # An image that is shown and also cut from is read and cropped once.
    needed, places = torch.unique(torch.cat([rows, others]), return_inverse=True)
    mine, theirs = places.to(device, non_blocking=True).chunk(2)
    images, targets = seen(needed)
    mixed, share = cut_mix(images[mine], images[theirs], box)
    if targets is not None:
        targets = torch.lerp(targets[mine], targets[theirs], share[:, None])
    return mixed, targets
