"""The interface of a parameterisation, and the legal range of normalised pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor


class Range:
    """Normalised units of images in [0, 1]: (0 - mean) / std .. (1 - mean) / std per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, device: str) -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.low, self.high = -self.mean / self.std, (1 - self.mean) / self.std


class Images(ABC):
    """One batch of images at a time, as a differentiable function of what is optimised."""

    #: Whether a batch depends on those before it: such a run is made in order.
    sequential = False

    @classmethod
    def carried(cls, size: tuple[int, int, int]) -> int:
        """Bytes of what `state` gives for images (C, H, W)."""
        del size
        return 0

    def __init__(
        self,
        size: tuple[int, int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        clip: bool,
        start: str = "white",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        """Prepare for images of `size` (C, H, W).

        Args:
            mean: per channel, of images in [0, 1]. std: per channel, > 0.
            clip: keep pixels within the legal range.
            start: kind of the noise that pixels start from; others have a start of their own.
            seed: of what is carried from batch to batch, where something is.
        """
        self.size = size
        self.seed = seed
        self.device = device
        self.clip = clip
        self.start = start
        self.range = Range(mean, std, device=device)

    @abstractmethod
    def begin(self, count: int, generator: Generator) -> None:
        """Start a batch of `count` images; the start is a function of `generator` (on the CPU)."""

    @abstractmethod
    def parameters(self) -> list[dict[str, Any]]:
        """What the optimiser changes, as its groups; `scale` multiplies the rate of a group."""

    @abstractmethod
    def inputs(self) -> Tensor:
        """The normalised batch (B, C, H, W), float32, differentiable in `parameters`."""

    def project(self) -> None:  # noqa: B027  (most need nothing here)
        """Put parameters back where they are legal, in place, after a step."""

    def learn(self) -> None:  # noqa: B027
        """Use the gradients of a step for what is carried to later batches."""

    def end(self, *, lr: float) -> None:
        """The batch is complete; `lr` is the rate that its optimiser had at its peak."""
        del lr

    def state(self) -> dict[str, Tensor]:
        """What is carried from batch to batch; empty where nothing is."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        del state
