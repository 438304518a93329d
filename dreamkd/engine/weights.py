"""How a student's weights move: the optimiser, and an average that follows."""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
from torch import nn

from dreamkd.config import DistillConfig
from dreamkd.copying import copied


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


class WeightAverage:
    """A copy of a module whose weights follow those of the module.

        average <- d average + (1 - d) module,   d = min(decay, (1 + step) / (10 + step))

    Running statistics are averaged like weights; the start of training is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin as `module` is; its tensors must stay where they are."""
        self.module = copied(module).eval()
        self._decay = decay
        # Found once: a step then takes two launches, however many tensors there are. Those of two
        # names move once.
        ours, theirs = (_tensors(m) for m in (self.module, module))
        kinds = [tensor.is_floating_point() for tensor in ours]
        self._ours, self._theirs = ([*compress(some, kinds)] for some in (ours, theirs))
        counts = [not kind for kind in kinds]  # of batches
        self._counts, self._their_counts = ([*compress(some, counts)] for some in (ours, theirs))

    @torch.no_grad()
    def move(self, *, step: int) -> None:
        """Follow the weights after a step."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._ours, self._theirs, share)
        if self._counts:
            torch._foreach_copy_(self._counts, self._their_counts)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers that are part of a module's state, each once."""
    return [*{id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values()]
