"""How a student's weights move: the optimiser, and an average that follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamkd.config import DistillConfig


def optimizer(module: nn.Module, config: DistillConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; no decay of biases and batch norm."""
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in module.parameters() if p.ndim > 1],
            "weight_decay": float(config.weight_decay),
        },
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr, momentum = float(config.lr), config.momentum
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)


@torch.no_grad()
def move_average(average: nn.Module, module: nn.Module, decay: float, *, step: int) -> None:
    """Move the average of a module's weights after a step.

        average <- d average + (1 - d) module,   d = min(decay, (1 + step) / (10 + step))

    Running statistics are averaged like weights; the start of training is soon forgotten.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    pairs = zip(average.state_dict().values(), module.state_dict().values(), strict=True)
    floats: list[tuple[Tensor, Tensor]] = []
    for old, new in pairs:
        if old.is_floating_point():
            floats.append((old, new))
        else:
            old.copy_(new)  # the count of batches
    torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], share)
