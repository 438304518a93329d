"""A private copy of a network whose weights no longer change, in the form that runs fastest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamkd.engine.runtime import Runtime


def fixed(
    model: nn.Module, *, runtime: Runtime, input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """A copy of `model` in eval mode, on the runtime's device, that computes the same faster.

    What every step would do again is done once: weights are cast to the precision of the matrix
    products and laid out with the channels last, and batch norms are reduced to what is left of
    them (`FixedNorm`). The copy is for `runtime.autocast()` only; `model` is left alone.

    Kinds that are not known by their exact class stay as they are.

    Args:
        input_size: (C, H, W) of a blank image that the copy is run on: some networks keep a table
            from their first run, which would be another graph, were it left to the first step.
    """
    with torch.no_grad():
        made = copy.deepcopy(model).eval().requires_grad_(False).to(runtime.device)
        made = made.to(memory_format=torch.channels_last)
        for name, module in list(made.named_modules()):
            if type(module) in _PRODUCTS and runtime.dtype != torch.float32:
                module.to(runtime.dtype)
            elif _is_known_norm(module):
                norm = FixedNorm(module).to(runtime.device)
                if not name:
                    return norm
                made.set_submodule(name, norm)
        if input_size is not None:
            blank = torch.zeros(1, *input_size, device=runtime.device)
            with runtime.autocast():
                made(blank.contiguous(memory_format=torch.channels_last))
    return made


class FixedNorm(nn.Module):
    """Batch norm in eval mode with its square root taken: (x - running_mean) scale + bias.

    scale = weight / sqrt(running_var + eps)

    The compiler makes one pass of it together with what follows. Where it does not run and images
    are of half precision, torch's own kernel is one pass too, and these would be five.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    centre: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, norm: nn.Module) -> None:
        """Take over from a BatchNorm1d/2d/3d, SyncBatchNorm or timm BatchNormAct2d."""
        super().__init__()
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.eps = norm.eps
        mean, var = norm.running_mean.float(), norm.running_var.double()
        weight = torch.ones_like(mean) if norm.weight is None else norm.weight.float()
        scale = (var + norm.eps).rsqrt() * weight
        bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.float()
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", norm.running_var.float().clone())
        self.register_buffer("weight", weight.detach().clone())
        # As they stand beside images, (C, 1, 1): nothing is left for the compiler to trace.
        self.register_buffer("centre", mean.clone()[:, None, None])
        self.register_buffer("scale", scale.detach().float()[:, None, None])
        self.register_buffer("bias", bias.detach().clone()[:, None, None])
        after = [getattr(norm, step, None) for step in ("drop", "act")]
        self.after = nn.Sequential(*(step for step in after if isinstance(step, nn.Module)))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape and precision, computed in float32."""
        half = x.dtype != torch.float32
        if half and not torch.compiler.is_compiling():
            mean, var, bias = self.running_mean, self.running_var, self.bias.flatten()
            y = F.batch_norm(x, mean, var, self.weight, bias, eps=self.eps)
        else:
            centre, scale, bias = self.centre, self.scale, self.bias
            if x.ndim != 4:
                shape = (-1, *[1] * (x.ndim - 2))
                centre, scale, bias = (values.view(shape) for values in (centre, scale, bias))
            y = ((x.float() if half else x) - centre) * scale + bias
            if half:
                y = y.to(x.dtype)
        return self.after(y) if len(self.after) else y


def _is_known_norm(module: nn.Module) -> bool:
    """By name: timm is not imported for it."""
    kind = type(module)
    known = kind.__module__.startswith(("torch.nn.", "timm.layers.")) and kind.__name__ in _NORMS
    return known and getattr(module, "running_mean", None) is not None


#: Layers that autocast gives weights of the chosen precision.
_PRODUCTS = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear}
_NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchNormAct2d"}
