"""Pixels: each value is a parameter of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from dreamkd.images.parameterisation import Images

#: Standard deviation of a photograph's pixels, in [0, 1].
_CONTRAST = 0.25

#: What differs from one photograph to another, in [0, 1]: standard deviations of its brightness and
#: of the mean of a colour, and the range of its contrast, in shares of `_CONTRAST`.
_BRIGHTNESS, _HUE, _CONTRASTS = 0.13, 0.03, (0.4, 1.0)

#: Share of a photograph's variance that its colours have in common.
_GREY = 0.9


class Pixels(Images):
    """The pixels themselves, in normalised units, from Gaussian noise (Yin et al. 2020).

        x ~ N(0, 1),  (B, C, H, W)

    `start` is the kind of noise: `white` as published, or `pink`, whose amplitude falls as 1 / f as
    that of photographs does, so that fewer steps go into removing what no image has. Pink noise
    deviates by at most a quarter of the pixels' range, again as photographs do. `natural` noise
    takes more from them: pink, mostly grey, and of another brightness and contrast in each image,
    which no term of the loss asks for and which a network has seen.
    """

    x: Tensor

    def begin(self, count: int, generator: Generator) -> None:
        """Draw the noise on the CPU: the same start on every device."""
        noise = torch.randn((count, *self.size), generator=generator)
        std = self.range.std.cpu()
        strength = (_CONTRAST / std).clamp_max(1)
        if self.start == "pink":
            noise = pink(noise) * strength
        elif self.start == "natural":
            noise = varied(greyed(pink(noise)) * strength, unit=1 / std, generator=generator)
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


def greyed(noise: Tensor) -> Tensor:
    """Noise whose channels have most in common, each with the variance that it had.

        x_c = sqrt(g) n + sqrt((1 - g) C / (C - 1)) (x_c - mean),   n = sqrt(C) mean,   g = 0.9

    Args: noise: (B, C, H, W), channels independent and of one variance.
    Returns: the same shape.
    """
    channels = noise.shape[1]
    if channels == 1:
        return noise
    mean = noise.mean(1, keepdim=True)
    own = (noise - mean) * math.sqrt((1 - _GREY) * channels / (channels - 1))
    return mean * math.sqrt(_GREY * channels) + own


def varied(noise: Tensor, *, unit: Tensor, generator: Generator) -> Tensor:
    """Noise whose images differ in brightness, tint and contrast, as photographs do.

    Args:
        noise: (B, C, H, W), of the largest contrast. unit: (1, C, 1, 1), the range of pixels.
    Returns: the same shape.
    """
    count, channels = noise.shape[:2]
    low, high = _CONTRASTS
    contrast = low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator)
    grey = torch.randn((count, 1, 1, 1), generator=generator) * _BRIGHTNESS
    tint = torch.randn((count, channels, 1, 1), generator=generator) * _HUE
    return (noise - noise.mean((-2, -1), keepdim=True)) * contrast + (grey + tint) * unit
