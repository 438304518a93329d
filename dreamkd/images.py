"""What is optimised when an image is synthesised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


class Pixels:
    """The pixels themselves, in normalised units, from Gaussian noise (seed section 2.1).

        x ~ N(0, 1),  (B, C, H, W)

    `clip` keeps them within the legal range (0 - mean) / std .. (1 - mean) / std.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        clip: bool,
        generator: Generator,
        device: str = "cpu",
    ) -> None:
        centre = torch.tensor(mean).view(1, -1, 1, 1)
        spread = torch.tensor(std).view(1, -1, 1, 1)
        self._low = (-centre / spread).to(device)
        self._high = ((1 - centre) / spread).to(device)
        self._clip = clip
        # Drawn on the CPU: the same start on every device.
        self.x = torch.randn(shape, generator=generator).to(device).requires_grad_()
        self.project()

    def parameters(self) -> list[Tensor]:
        """What the optimiser changes."""
        return [self.x]

    def inputs(self) -> Tensor:
        """The normalised batch, (B, C, H, W), differentiable in `parameters`."""
        return self.x

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        """Undo a loss scale, in place."""
        if factor != 1 and self.x.grad is not None:
            self.x.grad.mul_(factor)

    @torch.no_grad()
    def project(self) -> None:
        """Clip to the legal pixel range, in place."""
        if self._clip:
            self.x.clamp_(self._low, self._high)
