"""The networks of `cifar` under timm's roof: their names work wherever timm's do.

import dreamkd.models.registration
timm.create_model("cifar_resnet20", num_classes=100, in_chans=1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from dreamkd.models import cifar, from_cifar


def _cfg(name: str) -> dict[str, Any]:
    usual, kind = from_cifar.defaults(name), cifar.NETWORKS[name].kind
    return {
        "num_classes": usual.num_classes,
        "input_size": usual.input_size,
        "pool_size": None,
        "fixed_input_size": False,
        "interpolation": usual.interpolation,
        "crop_pct": usual.crop_pct,
        "mean": usual.mean,
        "std": usual.std,
        "first_conv": kind.first_name,
        "classifier": kind.classifier_name,
    }


#: timm looks this name up in the module of what it registers.
default_cfgs = generate_default_cfgs({name: _cfg(name) for name in cifar.NETWORKS})


def _entry(name: str) -> Callable[..., nn.Module]:
    """What timm calls to build the network; it goes by its own name."""

    def entry(pretrained: bool = False, **arguments: Any) -> nn.Module:
        build = cifar.NETWORKS[name]
        module: nn.Module = build_model_with_cfg(build, name, pretrained, **arguments)
        return module

    entry.__name__ = name
    return entry


for _name in cifar.NETWORKS:
    register_model(_entry(_name))
