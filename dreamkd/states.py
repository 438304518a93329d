"""A network in training, on disk: tensors, and JSON values beside them; it vouches for itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamkd import checkpoint
from dreamkd.errors import ModelError, RunError, said


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write safetensors in one atomic step; equal content gives equal bytes.

    Raises: RunError: the file cannot be written; its old content is untouched.
    """
    text = json.dumps(facts, sort_keys=True)
    checkpoint.write(path, tensors, {"facts": text, "sha256": _sha256(tensors, text)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` was given, to the bit.

    Raises:
        ModelError: it is not what was written.
        RunError: the system does not give it; what it holds may be whole.
    """
    try:
        saved = checkpoint.read(path)
    except ModelError as error:
        if not isinstance(error.__cause__, OSError | RuntimeError):  # these of torch's mapping
            raise
        raise RunError(
            f"cannot read {path}: {said(error.__cause__)}; make it readable, or remove it to have "
            "what it held made again"
        ) from error
    text = saved.metadata.get("facts", "")
    if saved.metadata.get("sha256") != _sha256(saved.state, text):
        raise ModelError(f"{path} is damaged")
    return saved.state, json.loads(text)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


#: What SGD, Adam and AdamW remember of each weight.
_MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


def moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """What an optimiser remembers of each weight: tensors named `MOMENT.WEIGHT`."""
    return {
        f"{moment}.{name}": value
        for name, parameter in module.named_parameters()
        for moment, value in optimizer.state[parameter].items()
        if value is not None  # SGD without momentum keeps a None
    }


def restore_moments(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Have an optimiser go on from what `moments` gave, in copies; any other names are ignored."""
    optimizer.state.clear()
    counts_there = bool(optimizer.defaults.get("fused"))  # its steps where the weights are
    found = {moment: under(f"{moment}.", tensors) for moment in _MOMENTS}
    for name, parameter in module.named_parameters():
        for moment, values in found.items():
            if name in values:
                value = values[name]
                # In the parameter's own memory layout, as the optimiser made it.
                like = parameter if value.ndim == parameter.ndim else value
                there = moment != "step" or counts_there
                device = parameter.device if there else torch.device("cpu")
                copy = torch.empty_like(like, dtype=value.dtype, device=device).copy_(value)
                optimizer.state[parameter][moment] = copy.detach()


def _sha256(tensors: Mapping[str, Tensor], facts: str) -> str:
    return hashlib.sha256(f"{checkpoint.sha256(tensors)} {facts}".encode()).hexdigest()
