"""Pixels: each value is a parameter of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dreamkd.images.parameterisation import Images


class Pixels(Images):
    """The pixels themselves, in normalised units, from Gaussian noise (seed section 2.1).

    x ~ N(0, 1),  (B, C, H, W)
    """

    x: Tensor

    def begin(self, count: int, generator: Generator) -> None:
        """Draw the noise on the CPU: the same start on every device."""
        noise = torch.randn((count, *self.size), generator=generator)
        noise = noise.to(self.device, memory_format=torch.channels_last)
        self.x = noise.requires_grad_()
        self.project()

    def parameters(self) -> list[dict[str, Any]]:
        """The pixels."""
        return [{"params": [self.x], "scale": 1.0}]

    def inputs(self) -> Tensor:
        """The pixels."""
        return self.x

    @torch.no_grad()
    def project(self) -> None:
        """Clip to the legal pixel range, in place."""
        if self.clip:
            self.x.clamp_(self.range.low, self.range.high)
