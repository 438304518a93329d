"""Networks held still, and the one place where images become inputs and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dreamkd.models import Card


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no weight gradients while the block lasts; put back after it.

    The input's gradient still flows: what is saved is the other half of the backward pass.
    """
    training = {module: module.training for module in model.modules()}
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, learned in learning.items():
            parameter.requires_grad_(learned)


@contextmanager
def on_device(model: nn.Module, device: str | torch.device) -> Iterator[nn.Module]:
    """Frozen on `device` while the block lasts; brought home and thawed after it."""
    home = _home(model, otherwise=device)
    with frozen(model):
        try:
            yield model.to(device)
        finally:
            model.to(home)


def _home(model: nn.Module, *, otherwise: str | torch.device = "cpu") -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device(otherwise))


def lay_out(model: nn.Module, input_size: tuple[int, int, int]) -> Callable[[], None]:
    """Put the channels of the weights last, the fastest layout: images then may be given likewise.

    A network that flattens by `view` does not run so, though it does otherwise. Its weights stay as
    they are, and a hook gives it images in the usual layout. One that changes its images in place
    gets some of its own, since others look at the same.

    Args: input_size: (C, H, W) of a blank image that the network is run on.
    Returns: what undoes it.
    """
    ours = (_in_usual_layout, _of_its_own)
    if any(hook in ours for hook in model._forward_pre_hooks.values()):
        return lambda: None  # found out before; weights that a recorded step reads stay in place
    blank = torch.zeros(1, *input_size, device=_home(model))
    handles: list[RemovableHandle] = []
    moved = [
        parameter
        for parameter in model.parameters()
        if parameter.ndim == 4 and not parameter.is_contiguous(memory_format=torch.channels_last)
    ]

    def undo() -> None:
        for handle in handles:
            handle.remove()
        _move(moved, torch.contiguous_format)

    _move(moved, torch.channels_last)
    with frozen(model), torch.no_grad():
        images = blank.clone(memory_format=torch.channels_last)
        try:
            model(images)
        except Exception:  # what `view` refuses has no class of its own, nor what others assert
            _move(moved, torch.contiguous_format)
            handles.append(model.register_forward_pre_hook(_in_usual_layout))
            model(images := blank.clone())
        # Changed in place, be it to the same values, or past autograd.
        if images._version or not torch.equal(images, blank):
            handles.append(model.register_forward_pre_hook(_of_its_own))
    return undo


def _move(parameters: Sequence[nn.Parameter], layout: torch.memory_format) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.contiguous(memory_format=layout)


def _of_its_own(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.clone() for each in inputs)


def _in_usual_layout(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in inputs)


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Inputs of a network from images: (images - mean) / std per channel.

    Args:
        images: (B, C, H, W), float in [0, 1] or uint8 in 0..255.
        mean: C values in [0, 1]. std: C values > 0.
    Returns: float32 (B, C, H, W).
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    offset, divisor = _per_channel(mean, images) * scale, _per_channel(std, images) * scale
    return (images.float() - offset) / divisor


def renormalise(inputs: Tensor, source: Card, target: Card) -> Tensor:
    """Inputs of one network as inputs of another: x * std_s + mean_s, then (x - mean_t) / std_t."""
    if (source.mean, source.std) == (target.mean, target.std):
        return inputs
    scale = _per_channel([a / b for a, b in zip(source.std, target.std, strict=True)], inputs)
    offset = _per_channel(
        [(m - n) / t for m, n, t in zip(source.mean, target.mean, target.std, strict=True)],
        inputs,
    )
    return inputs * scale + offset


def to_uint8(inputs: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images from inputs: clipped to the legal range and rounded, never truncated.

    Args: inputs: float (B, C, H, W), normalised.
    Returns: uint8 (B, C, H, W).
    """
    offset, divisor = _per_channel(mean, inputs), _per_channel(std, inputs)
    return ((inputs * divisor + offset) * 255).round().clamp(0, 255).to(torch.uint8)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """(C, 1, 1), filled in on the device: no recorded step copies from the host."""
    return torch.cat([torch.full((1, 1, 1), float(v), device=like.device) for v in values])
