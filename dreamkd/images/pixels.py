"""Pixels: each value is a parameter of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dreamkd.images.parameterisation import Images

#: Standard deviation of a photograph's pixels, in [0, 1].
_CONTRAST = 0.25


class Pixels(Images):
    """The pixels themselves, in normalised units, from Gaussian noise (seed section 2.1).

        x ~ N(0, 1),  (B, C, H, W)

    `start` is the spectrum of the noise: `white` as published, or `pink`, whose amplitude falls as
    1 / f as that of photographs does, so that fewer steps go into removing what no image has. Pink
    noise deviates by at most a quarter of the pixels' range, again as photographs do.
    """

    x: Tensor

    def begin(self, count: int, generator: Generator) -> None:
        """Draw the noise on the CPU: the same start on every device."""
        noise = torch.randn((count, *self.size), generator=generator)
        if self.start == "pink":
            noise = pink(noise) * (_CONTRAST / self.range.std.cpu()).clamp_max(1)
        noise = noise.to(self.device, memory_format=torch.channels_last)
        self.x = noise.requires_grad_()
        self.project()

    def take(self, images: Tensor) -> None:
        """Start from `images` (B, C, H, W), normalised, float32, which stay as they are."""
        self.x = images.detach().clone().requires_grad_()
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


def pink(noise: Tensor) -> Tensor:
    """White noise with the spectrum 1 / f, and unit variance as before.

        x = F^-1(a F(noise)),   a ~ 1 / max(f, 1 / side)

    f in cycles per pixel; below one cycle per side, which includes the mean colour, a is flat.

    Args: noise: (..., H, W), float.
    Returns: the same shape.
    """
    height, width = noise.shape[-2:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
    amplitude = (rows**2 + columns**2).sqrt().clamp_min(1 / max(height, width)).reciprocal()
    amplitude = amplitude / amplitude.square().mean().sqrt()
    coloured: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real
    return coloured
