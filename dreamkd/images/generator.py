"""A generator whose start is learned over batches: a few steps then make an image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dreamkd.images.parameterisation import Images
from dreamkd.randomness import generator_for
from dreamkd.states import moments, restore_moments, under

#: Length of the latent vector z.
LATENT = 256

#: Rate of z over the rate of the weights (Fang et al. 2022, at 5 and 10 inner steps: 3 and 5).
LATENT_SCALE = 10 / 3


class Generated(Images):
    """Images of a small network from a latent each, with a meta-learned start (Fang et al. 2022).

        batch:  w <- meta weights,  z ~ N(0, 1)
        k inner steps of Adam on (w, z), from the gradient of the loss at G(z; w)
        the meta weights take one step of Adam along the sum of the k gradients of w, rate k lr

    The sum is first-order MAML. The clone's batch norm uses the statistics of its batch.
    """

    sequential = True

    def __init__(self, size: tuple[int, int, int], **settings: Any) -> None:
        """Draw the meta weights from the seed."""
        super().__init__(size, **settings)
        self._meta = _Generator(size).to(self.device)
        _initialise(self._meta, generator_for(self.seed, "generator"))
        self._start = copy.deepcopy(self._meta.state_dict())
        for parameter in self._meta.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer = torch.optim.Adam(self._meta.parameters(), betas=(0.5, 0.999))
        self._steps = 0

    @classmethod
    def carried(cls, size: tuple[int, int, int]) -> int:
        """Weights and two moments of each, in float32."""
        with torch.device("meta"):
            return 3 * 4 * sum(p.numel() for p in _Generator(size).parameters())

    def begin(self, count: int, generator: Generator) -> None:
        """Clone the meta-generator and draw a latent for each image, on the CPU."""
        self._clone = copy.deepcopy(self._meta)
        self._latent = torch.randn((count, LATENT), generator=generator).to(self.device)
        self._latent.requires_grad_()
        self._steps = 0
        for parameter in self._meta.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    def parameters(self) -> list[dict[str, Any]]:
        """Weights of the clone, and the latents at a larger rate."""
        return [
            {"params": list(self._clone.parameters()), "scale": 1.0},
            {"params": [self._latent], "scale": LATENT_SCALE},
        ]

    def inputs(self) -> Tensor:
        """G(z; w), within the legal range by its sigmoid."""
        images: Tensor = self._clone(self._latent)
        return (images - self.range.mean) / self.range.std

    @torch.no_grad()
    def learn(self) -> None:
        """Add the clone's gradients to those of the meta-generator."""
        ours = [p.grad for p in self._meta.parameters() if p.grad is not None]
        theirs = [p.grad for p in self._clone.parameters() if p.grad is not None]
        torch._foreach_add_(ours, theirs)
        self._steps += 1

    def end(self, *, lr: float) -> None:
        """Move the meta weights at the rate of all inner steps together."""
        self._optimizer.param_groups[0]["lr"] = self._steps * lr
        self._optimizer.step()
        del self._clone, self._latent

    def state(self) -> dict[str, Tensor]:
        """Meta weights, and Adam's moments of them."""
        tensors = {f"meta.{k}": v for k, v in self._meta.state_dict().items()}
        return tensors | moments(self._optimizer, self._meta)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave; from the drawn weights if it is empty."""
        self._meta.load_state_dict(under("meta.", state) or self._start)
        restore_moments(self._optimizer, self._meta, state)


class _Generator(nn.Module):
    """z (B, 256) -> images (B, C, H, W) in (0, 1): two doublings of a quarter-size map."""

    def __init__(self, size: tuple[int, int, int], *, width: int = 64) -> None:
        super().__init__()
        channels, height, width_px = size
        self.size = (height, width_px)
        self.start = (2 * width, -(-height // 4), -(-width_px // 4))
        features = self.start[0] * self.start[1] * self.start[2]
        self.linear = nn.Linear(LATENT, features)
        self.body = nn.Sequential(
            _norm(2 * width),
            _DoublingConv(2 * width, 2 * width),
            _norm(2 * width),
            nn.LeakyReLU(0.2),
            _DoublingConv(2 * width, width),
            _norm(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """The images, cut to size where it is no multiple of four."""
        x = self.linear(latent).view(-1, *self.start)
        x = self.body(x.contiguous(memory_format=torch.channels_last))
        return torch.sigmoid(x.float())[..., : self.size[0], : self.size[1]]


class _DoublingConv(nn.Conv2d):
    """3 x 3 convolution of x doubled in size by nearest neighbours: (B, I, H, W) -> (B, O, 2H, 2W).

    Each output sees 2 x 2 inputs, so that one transposed convolution of 4 x 4 and stride 2 gives
    the same with 4/9 of the multiplications; per axis its kernel is [w2, w1 + w2, w0 + w1, w0].
    """

    merged: Tensor  # (9, 16): from the weights to the kernel

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        axis = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
        self.register_buffer("merged", torch.kron(axis, axis).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.weight.flatten(2) @ self.merged).view(*self.weight.shape[:2], 4, 4)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


@torch.no_grad()
def _initialise(module: nn.Module, generator: Generator) -> None:
    """Uniform in +-1 / sqrt(fan in), as torch does for these layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    drawn = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator)
                    tensor.copy_(drawn)
