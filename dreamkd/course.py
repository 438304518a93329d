"""How the images of a batch are optimised: steps at each resolution, rates, weights.

A batch takes one course; the images of a generator or a pyramid may take a second, in which their
pixels are refined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dreamkd.config import ImageConfig
from dreamkd.engine import rate
from dreamkd.images import Images

#: Betas of Adam where pixels are refined: those of the preset `fast`, whose memory is as short.
_REFINING_BETAS = (0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Course:
    """Steps of Adam from coarse to full resolution."""

    stages: tuple[tuple[int, int], ...]  # (factor by which the network sees images smaller, steps)
    lr: float  # at its peak
    betas: tuple[float, float]
    schedule: str
    warmup: int  # steps of each stage, at most half of it
    r_feature: float | str  # alpha_f; auto where no statistics are matched
    averaged: bool  # whether former batches' statistics count in R_feature

    @classmethod
    def of(cls, config: ImageConfig, *, share: float = 1.0) -> Course:
        """As settled settings say, at `share` of their rate."""
        return cls(
            stages=tuple(stages(config)),
            lr=share * float(config.image_lr),
            betas=(float(config.image_beta1), float(config.image_beta2)),
            schedule=config.image_schedule,
            warmup=int(config.image_warmup),
            r_feature=config.r_feature,
            averaged=True,
        )

    @classmethod
    def refining(cls, config: ImageConfig, *, share: float = 1.0) -> Course:
        """Of the pixels, once a generator or a pyramid has made them."""
        return cls(
            stages=((1, refining_steps(config)),),
            lr=share * float(config.refine_lr),
            betas=_REFINING_BETAS,
            schedule="cosine",
            warmup=0,
            r_feature=config.refine_r_feature,
            averaged=False,
        )

    def optimizer(self, images: Images) -> torch.optim.Adam:
        """A fresh Adam: each resolution has its own moments."""
        return torch.optim.Adam(images.parameters(), betas=self.betas, fused=True)

    def set_rate(self, optimizer: torch.optim.Adam, step: int, steps: int) -> None:
        """The rate at `step` of a stage of `steps`, counted from 0."""
        warmup = min(self.warmup, steps // 2)
        factor = rate(step, steps, warmup=warmup, schedule=self.schedule)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * factor * group["scale"]


def stages(config: ImageConfig) -> Iterator[tuple[int, int]]:
    """(factor, steps) of each resolution, coarse to full: `--stages 2,1` is two thirds at half."""
    lengths = [int(length) for length in config.stages]
    total, whole, before = int(config.image_steps), sum(lengths), 0
    for i, length in enumerate(lengths):
        before += length
        start, stop = total * (before - length) // whole, total * before // whole
        if stop > start:
            yield 2 ** (len(lengths) - 1 - i), stop - start


def refining_steps(config: ImageConfig) -> int:
    """Steps of the pixels after those of a generator or a pyramid; pixels need none."""
    return 0 if config.images == "pixels" else int(config.refine_steps)


def graphs(config: ImageConfig, *, rival: bool = False) -> int:
    """Steps of different form: of each resolution, some with a rival, and of refined pixels."""
    return len(list(stages(config))) * (1 + rival) + (refining_steps(config) > 0)


def full_steps(config: ImageConfig) -> float:
    """Steps that a batch takes, by settled settings, in steps at full resolution."""
    return sum(steps / factor**2 for factor, steps in stages(config)) + refining_steps(config)


def steps_per_batch(config: ImageConfig) -> int:
    """Optimisation steps that a batch takes, by settled settings."""
    return int(config.image_steps) + refining_steps(config)
