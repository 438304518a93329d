"""A private copy of a network whose weights no longer change, in the form that runs fastest."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamkd.copying import copied
from dreamkd.engine.modules import lay_out
from dreamkd.engine.runtime import Runtime


def fixed(model: nn.Module, *, runtime: Runtime, input_size: tuple[int, int, int]) -> nn.Module:
    """A copy of `model` in eval mode, on the runtime's device, that computes the same faster.

    What every step would do again is done once: weights are cast to the precision of the matrix
    products and laid out with the channels last, and batch norms are reduced to what is left of
    them (`FixedNorm`). The copy is for `runtime.autocast()` only; `model` is left alone.

    Kinds that are not known by their exact class stay as they are.

    Args:
        input_size: (C, H, W) of a blank image that the copy is run on, to see which layout it
            bears. Some networks keep a table from their first run, which would be another graph,
            were it left to the first step.
    """
    with torch.no_grad():
        made = copied(model).eval().requires_grad_(False).to(runtime.device)
        for module in list(made.modules()):
            if type(module) in _PRODUCTS and runtime.dtype != torch.float32:
                module.to(runtime.dtype)
            elif _is_known_norm(module):
                FixedNorm.take_over(module)
        with runtime.autocast():
            lay_out(made, input_size)
    return made


class FixedNorm(nn.Module):
    """Batch norm in eval mode with its square root taken: (x - running_mean) scale + bias.

    scale = weight / sqrt(running_var + eps)

    The compiler makes one pass of it together with what follows. Where it does not run and images
    are of half precision, torch's own kernel is one pass too, and these would be five.

    A layer becomes one where it is, and stays what it was besides: networks read the size of their
    layers, and keep them in lists.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    # As they stand beside images, (C, 1, 1): nothing is left for the compiler to trace.
    centre: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def take_over(cls, norm: nn.Module) -> None:
        """Turn a BatchNorm1d/2d/3d, SyncBatchNorm or timm BatchNormAct2d into one."""
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.float()
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = torch.zeros_like(scale) if norm.bias is None else norm.bias
        beside = {"centre": norm.running_mean, "scale": scale, "shift": shift}
        for name, values in beside.items():
            norm.register_buffer(name, values.detach().float().clone()[:, None, None])
        after = [getattr(norm, step, None) for step in ("drop", "act")]
        norm.after = nn.Sequential(*(step for step in after if isinstance(step, nn.Module)))
        kind: type = type(norm)
        norm.__class__ = _fixed_kind(kind)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape and precision, computed in float32."""
        x, half = input, input.dtype != torch.float32
        if half and not torch.compiler.is_compiling():
            norm = self.running_mean, self.running_var, self.weight, self.bias, self.eps
            y: Tensor = _Norm.apply(x, *norm)
        else:
            centre, scale, shift = self.centre, self.scale, self.shift
            if x.ndim != 4:
                shape = (-1, *[1] * (x.ndim - 2))
                centre, scale, shift = (values.view(shape) for values in (centre, scale, shift))
            y = ((x.float() if half else x) - centre) * scale + shift
            if half:
                y = y.to(x.dtype)
        after: Any = self.after
        out: Tensor = after(y) if len(after) else y
        return out


class _Norm(torch.autograd.Function):
    """torch's batch norm in eval mode, whose gradient keeps the layout of what it is of.

    It is linear in x, so that its backward pass is itself without mean and bias. torch's own saves
    x for it, and on CUDA gives the gradient of half precision back with the channels first.
    """

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        _, _, ctx.var, ctx.weight, _, ctx.eps = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        nothing = torch.zeros_like(ctx.var)
        back = F.batch_norm(gradient, nothing, ctx.var, ctx.weight, None, eps=ctx.eps)
        return back, None, None, None, None, None


@functools.cache
def _fixed_kind(kind: type) -> type:
    """A class of both kinds, for networks that ask what their layers are."""
    return type(FixedNorm.__name__, (FixedNorm, kind), {})


def _is_known_norm(module: nn.Module) -> bool:
    """By name: timm is not imported for it."""
    kind = type(module)
    known = kind.__module__.startswith(("torch.nn.", "timm.layers.")) and kind.__name__ in _NORMS
    return known and getattr(module, "running_mean", None) is not None


#: Layers that autocast gives weights of the chosen precision.
_PRODUCTS = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}
_NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchNormAct2d"}
