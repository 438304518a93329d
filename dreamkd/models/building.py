"""Building networks: seeded without touching the global generator, or on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dreamkd.randomness import seed_global

#: Heads used in training only; networks are built without them and their weights are dropped.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a library says about an architecture, or about one of its pretrained weights."""

    tag: str  # of the weights; "" where the library has none
    num_classes: int  # 0 for a feature extractor
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"
    advice: str = ""  # what else is to be known of the weights, for a person
    of_files: str = ""  # what is taken for granted of weights in a file, for a person
    class_names: tuple[str, ...] = ()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the block; the global generator continues as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):
        seed_global(seed)
        yield


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build without allocating weights; the module has shapes only.

    `torch.device("meta")` moves every factory, and networks that compute their widths with
    `torch.arange` (torchvision's RegNet) fail under it; here only weights are moved.
    """
    with _MetaWeights():
        module = build()
    return module.to("meta")


class _MetaWeights(TorchFunctionMode):
    """Sends the factories that make weights to the meta device, where nothing is drawn for them."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _WEIGHT_FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        if func in _DRAWS and args[0].is_meta:
            return args[0]  # torch would ask its compiler how this is done without values
        return func(*args, **kwargs)


_WEIGHT_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
_DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_}
