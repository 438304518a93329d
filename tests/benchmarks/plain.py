"""The plain loop that the fast one is compared with: DeepInversion as the equations are read.

float32, weight gradients on, statistics by permute, contiguous, view and var, eager Adam, one shift
and flip for the whole batch, one host sync a step. Nothing of dreamkd is used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def statistics_terms(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block every batch norm lists its two distances (Yin et al. 2020, Eq. 4-6)."""
    terms: list[Tensor] = []

    def append(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        x = args[0]
        mean = x.mean((0, 2, 3))
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        running_mean: Any = module.running_mean
        running_var: Any = module.running_var
        terms.append(torch.norm(var - running_var) + torch.norm(mean - running_mean))

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(append) for norm in norms]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()


def total_variation(x: Tensor) -> Tensor:
    """The four norms of Eq. 3 over the whole batch, as released; x: (B, C, H, W)."""
    right = x[:, :, :, :-1] - x[:, :, :, 1:]
    down = x[:, :, :-1, :] - x[:, :, 1:, :]
    diagonal = x[:, :, :-1, :-1] - x[:, :, 1:, 1:]
    other = x[:, :, 1:, :-1] - x[:, :, :-1, 1:]
    return right.norm() + down.norm() + diagonal.norm() + other.norm()


@dataclass(frozen=True)
class Settings:
    """What the terms of Eq. 7 weigh, as norms over the whole batch, and how a view is drawn."""

    r_feature: float
    tv_l2: float
    l2: float
    jitter: int
    flip: bool


#: As released with the paper: for CIFAR-10 at a rate of 0.1 and 2,000 steps, and for ImageNet.
CIFAR = Settings(r_feature=10, tv_l2=2.5e-5, l2=0, jitter=2, flip=False)
IMAGENET = Settings(r_feature=0.01, tv_l2=1e-4, l2=1e-5, jitter=30, flip=True)


def steps(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
) -> Iterator[float]:
    """Optimise `x`, the model's inputs (B, C, H, W), for ever; yields the loss after each step."""
    model.eval()
    with statistics_terms(model) as terms:
        while True:
            reach = settings.jitter
            shift = random.randint(-reach, reach), random.randint(-reach, reach)
            view = torch.roll(x, shift, dims=(2, 3))
            if settings.flip and random.random() < 0.5:
                view = torch.flip(view, dims=(3,))
            terms.clear()
            optimizer.zero_grad()
            model.zero_grad()
            loss = F.cross_entropy(model(view), labels)
            loss = loss + settings.r_feature * torch.stack(terms).sum()
            loss = loss + settings.tv_l2 * total_variation(view) + settings.l2 * view.norm()
            loss.backward()
            optimizer.step()
            yield loss.item()  # host sync
