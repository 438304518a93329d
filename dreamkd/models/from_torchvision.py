"""torchvision as a source of classifiers: the names of `torchvision.models` itself.

Detection, segmentation, video and quantised networks live in submodules and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torchvision
from torch import Tensor, nn

from dreamkd import checkpoint
from dreamkd.errors import ModelError, nearest
from dreamkd.events import OnEvent
from dreamkd.models import downloads
from dreamkd.models.building import AUXILIARY, Defaults
from dreamkd.models.oldnames import current

models: Any = torchvision.models  # its public functions are re-exported without types


@cache
def names() -> tuple[str, ...]:
    """Every classifier's name."""
    return tuple(models.list_models(module=models))


def defaults(name: str, tag: str = "") -> Defaults:
    """Preprocessing and classes of weights `tag`; V1 (the paper's) unless told otherwise."""
    weights = _weights(name, tag)
    preset = weights.transforms()
    side, resized = preset.crop_size[0], preset.resize_size[0]
    return Defaults(
        tag=weights.name,
        num_classes=len(weights.meta["categories"]),
        input_size=(3, side, side),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=side / resized,
        class_names=tuple(weights.meta["categories"]),
        of_files=_rescaling(preset.mean, preset.std) if name in _ARGUMENTS else "",
    )


def build(name: str, *, num_classes: int, input_size: tuple[int, int, int]) -> nn.Module:
    """The architecture with fresh weights, for any channel count; auxiliary heads left out."""
    arguments = dict(_ARGUMENTS.get(name, {}))
    channels, height, width = input_size
    if name.startswith("vit_"):
        if height != width:
            raise ModelError(f"torchvision:{name} takes square images, not {height}x{width}")
        arguments["image_size"] = height
    if name == "maxvit_t":
        arguments["input_size"] = (height, width)
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    if channels != 3:
        _replace_stem(module, name, channels)
    return module


def pretrained(name: str, tag: str, *, on_event: OnEvent) -> dict[str, Tensor]:
    """The weights of `tag`, from the torch hub's cache or downloaded into it.

    Args: on_event: told of a download.

    Raises:
        ModelError: no such weights, no network, or a damaged file in the cache.
    """
    weights = _weights(name, tag)
    wanted_by = f"torchvision:{name}.{weights.name}"
    path = downloads.from_url(weights.url, wanted_by, on_event=on_event)
    state = current(checkpoint.read(path).state)
    return {k: v for k, v in state.items() if not k.startswith(AUXILIARY)}


def _rescaling(mean: Sequence[float], std: Sequence[float]) -> str:
    """That a network brings inputs of this mean and std to 0.5 and 0.5, and how it would not.

    mean' = mean + std (mean - 0.5) / 0.5,   std' = std^2 / 0.5
    """
    pairs = [*zip(mean, std, strict=True)]
    means = ",".join(f"{m + s * (m - 0.5) / 0.5:.5g}" for m, s in pairs)
    stds = ",".join(f"{s * s / 0.5:.5g}" for _, s in pairs)
    return (
        "taken to rescale its inputs as the published weights do (transform_input); if it was "
        f"trained without, pass --mean {means} --std {stds}"
    )


def _weights(name: str, tag: str) -> Any:
    known = {weights.name: weights for weights in models.get_model_weights(name)}
    tag = tag or ("IMAGENET1K_V1" if "IMAGENET1K_V1" in known else next(iter(known)))
    if tag not in known:
        raise ModelError(
            f"torchvision:{name} has no weights {tag!r}{nearest(tag, known)}; "
            f"it has {', '.join(known)}"
        )
    return known[tag]


def _replace_stem(module: nn.Module, name: str, channels: int) -> None:
    """Replace the first convolution by one that takes `channels` channels."""
    if hasattr(module, "transform_input"):
        setattr(module, "transform_input", False)  # noqa: B010  (defined for three channels only)
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
            fresh = nn.Conv2d(
                channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                stride=layer.stride,  # type: ignore[arg-type]
                padding=layer.padding,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            module.set_submodule(path, fresh)
            return
    raise ModelError(f"torchvision:{name} has no first convolution to give {channels} channels")


# The published weights of these two expect the inputs rescaled inside the network.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}
