"""What a network expects of images: what is said of it, else what is usual for its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dreamkd.models.building import Defaults
from dreamkd.models.card import Card, parameters
from dreamkd.models.zoo import Architecture

#: What a file may leave unsaid.
EXPECTED = ("input_size", "mean", "std")


def card_of(
    architecture: Architecture,
    module: nn.Module,
    defaults: Defaults,
    fields: Mapping[str, Any],
    *,
    weights: str,
    source: str,
) -> Card:
    """The library's defaults under the `fields` that a file or the caller states."""
    channels = fields.get("input_size", defaults.input_size)[0]
    values = {
        "num_classes": defaults.num_classes,
        "class_names": defaults.class_names,
        "input_size": defaults.input_size,
        "mean": _for_channels(defaults.mean, channels),
        "std": _for_channels(defaults.std, channels),
        "interpolation": defaults.interpolation,
        "crop_pct": defaults.crop_pct,
        **fields,
    }
    return Card(
        architecture=str(architecture),
        weights=weights,
        source=source,
        parameters=parameters(module),
        pretrained=weights != "random",
        **values,
    )


def sized(fields: Mapping[str, Any], defaults: Defaults) -> tuple[int, int, int]:
    """(C, H, W) of what is stated, perhaps without C, or else usual."""
    stated = fields.get("input_size", defaults.input_size)
    height, width = stated[-2:]
    return channels_of(stated) or defaults.input_size[0], height, width


def channels_of(input_size: tuple[int, ...]) -> int | None:
    """C of (C, H, W); None of (H, W) and of nothing."""
    return input_size[0] if len(input_size) == 3 else None


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Normalisation for another channel count: every channel gets the average."""
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
