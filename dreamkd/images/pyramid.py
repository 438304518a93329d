"""A pyramid: the image as a sum of levels from one pixel to full resolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from dreamkd.images.parameterisation import Images
from dreamkd.resampling import resample, resampling


class Pyramid(Images):
    """Multi-resolution images, all levels optimised at once (Fort & Whitaker 2025).

        x = sum_l up(p_l),   p_l of side 1, 2, 4, ..., the full side

    Coarse levels move many pixels together, so that large shapes form without statistics to guide
    them. With `clip` the sum is squashed into the legal range instead of being cut off:

        image = sigmoid(4 (mean + std x) - 2)
    """

    def begin(self, count: int, generator: Generator) -> None:
        """Draw every level from N(0, 1) / number of levels, on the CPU."""
        channels, height, width = self.size
        coarsest = math.ceil(math.log2(max(height, width)))
        shapes = dict.fromkeys(
            (max(1, round(height / 2**k)), max(1, round(width / 2**k)))
            for k in range(coarsest, -1, -1)
        )
        self.levels = [
            torch.randn((count, channels, *shape), generator=generator)
            .div_(len(shapes))
            .to(self.device)
            .requires_grad_()
            for shape in shapes
        ]
        self._enlarge = [
            resampling((level.shape[2], level.shape[3]), self.size[1:], device=self.device)
            for level in self.levels
        ]

    def parameters(self) -> list[dict[str, Any]]:
        """The levels, coarse to fine."""
        return [{"params": self.levels, "scale": 1.0}]

    def inputs(self) -> Tensor:
        """The sum of all levels at full resolution."""
        levels = zip(self.levels, self._enlarge, strict=True)
        x = torch.stack([resample(level, weights) for level, weights in levels]).sum(0).float()
        if not self.clip:
            return x
        image = torch.sigmoid(4 * (self.range.mean + self.range.std * x) - 2)
        return (image - self.range.mean) / self.range.std
