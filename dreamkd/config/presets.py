"""What `auto` means for the images: by preset, and by the size of the model's input.

Weights of norms are per image (see docs/method.md for how the published ones convert).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dreamkd.config.commands import ImageConfig

Config = TypeVar("Config", bound="ImageConfig")

#: Inputs below this many pixels take the first column, others the second.
LARGE = 64

#: preset -> field -> (below 64 px, from 64 px)
PRESETS: dict[str, dict[str, tuple[Any, Any]]] = {
    "fast": {
        "image_steps": (200, 600),
        "image_batch_size": (256, 64),
        "image_lr": (0.1, 0.25),
        "image_beta1": (0.5, 0.5),
        "image_beta2": (0.9, 0.9),
        "image_schedule": ("cosine", "cosine"),
        "image_warmup": (10, 30),
        "jitter": (1 / 16, 30 / 224),
        "flip": ("on", "on"),
        "clip": ("on", "on"),
        "ce": (1.0, 1.0),
        "r_feature": (1.0, 0.01),
        "first_bn": (1.0, 10.0),
        "tv_l1": (0.0, 0.0),
        "tv_l2": (0.0, 1e-3),
        "l2": (0.0, 0.0),
    },
    "released": {
        "image_steps": (2000, 2000),
        "image_batch_size": (256, 84),
        "image_lr": (0.1, 0.25),
        "image_beta1": (0.9, 0.5),
        "image_beta2": (0.999, 0.9),
        "image_schedule": ("constant", "cosine"),
        "image_warmup": (0, 100),
        "jitter": (2 / 32, 30 / 224),
        "flip": ("off", "on"),
        "clip": ("off", "on"),
        "ce": (1.0, 1.0),
        "r_feature": (10.0, 0.01),
        "first_bn": (1.0, 10.0),
        "tv_l1": (0.0, 0.0),
        "tv_l2": (4e-4, 9.2e-4),
        "l2": (0.0, 1e-5),
    },
}


def settle(config: Config, *, input_size: tuple[int, int, int]) -> Config:
    """Replace every `auto` of the images, and of a student's schedule, by its value.

    The table gives `jitter` as a share of the image; here it becomes pixels, at least one.
    """
    channels, height, width = input_size
    column = int(min(height, width) >= LARGE)
    values = {name: pair[column] for name, pair in PRESETS[config.preset].items()}
    values["jitter"] = max(1, round(values["jitter"] * min(height, width)))
    steps = values["image_steps"] if config.image_steps == "auto" else config.image_steps
    values["image_warmup"] = min(values["image_warmup"], int(steps) // 10)
    if channels == 1:
        values["flip"] = "off"
    if hasattr(config, "warmup"):
        values["warmup"] = config.steps // 20
    return replace(config, **{k: v for k, v in values.items() if getattr(config, k) == "auto"})
