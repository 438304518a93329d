"""The networks of `cifar` as a source of classifiers, read without timm.

They are timm's too (`registration`): `timm:cifar_resnet20` is how files name them.
"""

from __future__ import annotations

from torch import nn

from dreamkd.errors import ModelError
from dreamkd.models.building import Defaults
from dreamkd.models.cifar import NETWORKS

#: CIFAR-10's own statistics, as every public repository of the field normalises.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def names() -> tuple[str, ...]:
    """Every network's name."""
    return tuple(NETWORKS)


def defaults(name: str, tag: str = "") -> Defaults:
    """What each of them expects of images; none has published weights of its own."""
    if tag:
        raise ModelError(f"timm:{name} has no weights {tag!r}; it has none")
    return Defaults(
        tag="",
        num_classes=10,
        input_size=(3, 32, 32),
        mean=MEAN,
        std=STD,
        interpolation="bicubic",
        crop_pct=1.0,
    )


def build(name: str, *, num_classes: int, input_size: tuple[int, int, int]) -> nn.Module:
    """The network with fresh weights, for any channel count and image size."""
    return NETWORKS[name](num_classes=num_classes, in_chans=input_size[0])
