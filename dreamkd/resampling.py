"""Images resized by matrix products: differentiable, and deterministic on every device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Resampling(NamedTuple):
    """Weights of a separable resize: `rows` (..., H_out, H_in) and `columns` (..., W_out, W_in)."""

    rows: Tensor
    columns: Tensor


def resample(images: Tensor, weights: Resampling) -> Tensor:
    """Resize by two matrix products, whose backward pass is deterministic on every device.

        y[b, c] = rows x[b, c] columns^T

    Args: images: (B, C, H_in, W_in), float.
    Returns: (B, C, H_out, W_out).
    """
    return weights.rows @ images @ weights.columns.transpose(-1, -2)


def resampling(before: tuple[int, int], after: tuple[int, int], *, device: str) -> Resampling:
    """Bilinear weights from size (H, W) `before` to `after`; antialiased where it shrinks."""
    rows, columns = (_triangle(m, n) for m, n in zip(before, after, strict=True))
    return Resampling(rows.to(device), columns.to(device))


def _triangle(before: int, after: int) -> Tensor:
    """(after, before): a triangle around the source of each output, wider where it shrinks."""
    ratio = before / after
    centre = (torch.arange(after) + 0.5) * ratio - 0.5
    distance = (torch.arange(before) - centre[:, None]).abs() / max(1.0, ratio)
    weights = (1 - distance).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)
