"""What a network expects of images: what is said of it, else what is usual for its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dreamkd.models import normalisation
from dreamkd.models.building import Defaults
from dreamkd.models.card import Card
from dreamkd.models.classifier import parameters
from dreamkd.models.zoo import Architecture

#: What a file may leave unsaid.
_EXPECTED = ("input_size", "mean", "std")


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
        "crop_mode": defaults.crop_mode,
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


def completed(
    fields: Mapping[str, Any], state: Mapping[str, Tensor], place: str, *, channels: int
) -> tuple[dict[str, Any], str]:
    """The fields and what a file holds of mean and std; in words, what is taken and what assumed.

    Args:
        fields: what is known from elsewhere, which wins.
        state: all of the file's entries.
        place: the names above the network there.
    """
    held, unfit = normalisation.beside(state, place, channels=channels)
    taken = {name: entry for name, entry in held.items() if name not in fields}
    filled = {**fields, **{name: values for name, (_, values) in taken.items()}}
    for name in ("mean", "std"):
        if len(filled.get(name, ())) == 1:  # as timm takes one number
            filled[name] *= channels
    said = ""
    if taken:
        entries = ", ".join(repr(entry) for entry, _ in taken.values())
        said += f"; {', '.join(taken)} from its {entries}"
    assumed = [name.replace("_", " ") for name in _EXPECTED if name not in filled]
    if assumed:
        said += f"; {', '.join(assumed)} as usual for it, since the file does not say"
        said += unfit if {"mean", "std"} - filled.keys() else ""
    return filled, said


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
