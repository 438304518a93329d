"""What `auto` means for images and student: by preset, and by the size of the model's input.

Weights of norms are per image (see docs/method.md for how the published ones convert).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dreamkd.config.options import AUTO

if TYPE_CHECKING:
    from dreamkd.config.images import ImageConfig

Config = TypeVar("Config", bound="ImageConfig")

#: Upper limits of the first two columns, in pixels of the input's shorter side.
SIZES = (32, 64)

#: preset -> field -> (below 32 px, 32 to 63 px, from 64 px). None: measured on the model.
PRESETS: dict[str, dict[str, tuple[Any, Any, Any]]] = {
    "fast": {
        "start": ("white", "natural", "pink"),
        "image_steps": (100, 200, 600),
        "stages": ((1,), (1,), (2, 1)),
        "image_batch_size": (128, 256, 64),
        "image_lr": (0.1, 0.2, 0.25),
        "image_beta1": (0.5, 0.5, 0.5),
        "image_beta2": (0.9, 0.9, 0.9),
        "image_schedule": ("cosine", "cosine", "cosine"),
        "image_warmup": (10, 0, 30),
        "jitter": (1 / 16, 1 / 8, 30 / 224),
        "jitter_border": ("wrap", None, "wrap"),
        "flip": ("on", "on", "on"),
        "crop": (1.0, 1.0, 1.0),
        "clip": ("on", "on", "on"),
        "ce": (1.0, 1.0, 1.0),
        "r_feature": (None, None, None),
        "r_feature_scale": (1.98, 0.0567, 0.0035),
        "first_bn": (1.0, 1.0, 10.0),
        "tv_l1": (0.0, 0.0, 0.0),
        "tv_l2": (0.0, 5e-3, 3e-3),
        "l2": (0.0, 0.0, 0.0),
        "bn_momentum": (0.0, 0.0, 0.0),
        "refine_steps": (0, 0, 0),
        "refine_lr": (0.1, 0.1, 0.1),
        "refine_r_feature": (None, None, None),
        "first_batches": (4, 8, 16),
        "rounds": (4, 32, 112),
        "steps": (800, 6000, 20000),
        "batch_size": (128, 128, 128),
        "lr": (0.1, 0.1, 0.1),
        "weight_decay": (5e-4, 5e-4, 5e-4),
        "cutmix": (0.0, 1.0, 1.0),
        "ema": (0.0, 0.0, 0.0),
        "temperature": (4.0, 20.0, 20.0),
        "competition": (1.0, 1.0, 1.0),
        "competition_loss": ("js", "js", "js"),
        "competition_temperature": (1.0, 1.0, 1.0),
    },
    "released": {
        "start": ("white", "white", "white"),
        "image_steps": (2000, 2000, 3000),
        "stages": ((1,), (1,), (2, 1)),
        "image_batch_size": (256, 256, 84),
        "image_lr": (0.1, 0.1, 0.25),
        "image_beta1": (0.9, 0.9, 0.5),
        "image_beta2": (0.999, 0.999, 0.9),
        "image_schedule": ("constant", "constant", "cosine"),
        "image_warmup": (0, 0, 100),
        "jitter": (2 / 32, 2 / 32, 30 / 224),
        "jitter_border": ("wrap", "wrap", "wrap"),
        "flip": ("off", "off", "on"),
        "crop": (1.0, 1.0, 1.0),
        "clip": ("off", "off", "on"),
        "ce": (1.0, 1.0, 1.0),
        "r_feature": (10.0, 10.0, 0.01),
        "r_feature_scale": (None, None, None),
        "first_bn": (1.0, 1.0, 10.0),
        "tv_l1": (0.0, 0.0, 0.0),
        "tv_l2": (4e-4, 4e-4, 9.2e-4),
        "l2": (0.0, 0.0, 1e-5),
        "bn_momentum": (0.0, 0.0, 0.0),
        "refine_steps": (0, 0, 0),
        "refine_lr": (0.1, 0.1, 0.1),
        "refine_r_feature": (None, None, None),
        "first_batches": (50, 50, 50),
        "rounds": (950, 950, 1600),
        "steps": (50000, 50000, 100000),
        "batch_size": (256, 256, 256),
        "lr": (0.1, 0.1, 0.1),
        "weight_decay": (1e-4, 1e-4, 1e-4),
        "cutmix": (0.0, 0.0, 0.0),
        "ema": (0.0, 0.0, 0.0),
        "temperature": (3.0, 3.0, 3.0),
        "competition": (10.0, 10.0, 0.2),
        "competition_loss": ("js", "js", "js"),
        "competition_temperature": (3.0, 3.0, 3.0),
    },
    "paper": {
        "start": ("white", "white", "white"),
        "image_steps": (2000, 2000, 20000),
        "stages": ((1,), (1,), (1,)),
        "image_batch_size": (256, 256, 152),
        "image_lr": (0.1, 0.1, 0.25),
        "image_beta1": (0.9, 0.9, 0.9),
        "image_beta2": (0.999, 0.999, 0.999),
        "image_schedule": ("constant", "constant", "cosine"),
        "image_warmup": (0, 0, 100),
        "jitter": (2 / 32, 2 / 32, 30 / 224),
        "jitter_border": ("wrap", "wrap", "wrap"),
        "flip": ("off", "off", "on"),
        "crop": (1.0, 1.0, 1.0),
        "clip": ("off", "off", "off"),
        "ce": (1.0, 1.0, 1.0),
        "r_feature": (10.0, 10.0, 0.01),
        "r_feature_scale": (None, None, None),
        "first_bn": (1.0, 1.0, 1.0),
        "tv_l1": (0.0, 0.0, 0.0),
        "tv_l2": (4e-4, 4e-4, 1.23e-3),
        "l2": (4.8e-7, 4.8e-7, 0.0),
        "bn_momentum": (0.0, 0.0, 0.0),
        "refine_steps": (0, 0, 0),
        "refine_lr": (0.1, 0.1, 0.1),
        "refine_r_feature": (None, None, None),
        "first_batches": (50, 50, 50),
        "rounds": (950, 950, 1600),
        "steps": (50000, 50000, 100000),
        "batch_size": (256, 256, 256),
        "lr": (0.1, 0.1, 0.1),
        "weight_decay": (1e-4, 1e-4, 1e-4),
        "cutmix": (0.0, 0.0, 0.0),
        "ema": (0.0, 0.0, 0.0),
        "temperature": (3.0, 3.0, 3.0),
        "competition": (10.0, 10.0, 0.2),
        "competition_loss": ("js", "js", "js"),
        "competition_temperature": (1.0, 1.0, 1.0),
    },
}

#: Standard deviation by which ImageNet's pixels are mostly divided, mean of its channels. Rates and
#: priors of the last column are of pixels so divided.
USUAL_STD = 0.226

#: What is in units of normalised pixels, and the power of the unit in it.
_UNITS = {"image_lr": 1, "refine_lr": 1, "tv_l1": -1, "tv_l2": -1, "l2": -1}

#: What other images than pixels need instead, whatever the preset and the size.
OTHER_IMAGES: dict[str, dict[str, Any]] = {
    "pyramid": {"stages": (1,), "image_lr": 0.1, "tv_l1": 0.0, "tv_l2": 0.0},
    "generator": {  # Fang et al. 2022, but for what is refined and the student's batches
        "image_steps": 5,
        "stages": (1,),
        "image_lr": 3e-3,
        "image_beta1": 0.5,
        "image_beta2": 0.999,
        "image_schedule": "constant",
        "image_warmup": 0,
        "ce": 0.5,
        "r_feature": 10.0,
        "r_feature_scale": 0.175,  # of the pixels that are refined
        "first_bn": 1.0,
        "tv_l1": 0.0,
        "tv_l2": 0.0,
        "l2": 0.0,
        "bn_momentum": 0.9,
        "refine_steps": 20,
        "first_batches": 10,
        "rounds": 100,
        "steps": 9720,
        "batch_size": 128,
        "lr": 0.2,
        "weight_decay": 5e-4,
        "cutmix": 0.0,
        "ema": 0.99,
        "temperature": 20.0,
        "competition": 1.33,
        "competition_loss": "kl",
        "competition_temperature": 1.0,
    },
}


def settle(
    config: Config, *, input_size: tuple[int, int, int], std: Sequence[float] = (USUAL_STD,)
) -> Config:
    """Replace every `auto` of the images, and of a student's schedule, by its value.

    Args:
        input_size: (C, H, W) of the model. std: what it divides pixels in [0, 1] by.

    What has no effect stays `auto`, and so does a weight of R_feature that is to be calibrated. The
    table gives `jitter` as a share of the image; here it becomes pixels, at least one. Warm-ups are
    at most a tenth of an image's steps, and a twentieth of the student's.
    """
    channels, height, width = input_size
    side = min(height, width)
    column = sum(side >= limit for limit in SIZES)
    values = {name: columns[column] for name, columns in PRESETS[config.preset].items()}
    recipe = _recipe(config, side=side)
    values["recipe"], values["images"] = recipe, config.images
    if config.images == AUTO:
        values["images"] = "generator" if recipe == "generator" else "pixels"
    values |= OTHER_IMAGES.get(values["images"], {})
    generated = values["images"] == "generator"
    if side >= SIZES[-1]:
        of_weights = {"image_lr": values["image_lr"]} if generated else {}
        values |= _converted(values, USUAL_STD * len(std) / sum(std)) | of_weights
    if getattr(config, "optimizer", "sgd") == "adamw":
        values |= {"lr": 1e-3, "weight_decay": 0.01}  # its decay is a share of the rate
    values["jitter"] = max(1, round(values["jitter"] * side))
    values["student_flip"] = "on"
    if channels == 1:
        values |= dict.fromkeys(("flip", "student_flip"), "off")
    wanted = {f.name: getattr(config, f.name) for f in fields(config)}
    given = {name: value for name, value in wanted.items() if value not in (AUTO, ())}
    values["student_flip"] = given.get("flip", values["student_flip"])
    refined = generated and int((values | given)["refine_steps"]) > 0
    if "r_feature_scale" in given and not refined:
        values["r_feature"] = None
    chosen = values | given
    if not generated:  # pixels before and after
        values["refine_r_feature"] = chosen["r_feature"]
    values["image_warmup"] = min(values["image_warmup"], int(chosen["image_steps"]) // 10)
    values["warmup"] = int(chosen["steps"]) // 20 if config.preset == "fast" else 0
    deciding = ("images", "refine_steps", "r_feature")  # whether others have an effect
    known = {name: chosen[name] for name in deciding if chosen[name] is not None}
    decided = replace(config, **known)
    values |= decided.unmatched()
    open_ = values.keys() & (wanted.keys() - given.keys() - decided.idle().keys())
    return replace(config, **{name: values[name] for name in open_ if values[name] is not None})


def _converted(values: dict[str, Any], unit: float) -> dict[str, Any]:
    """Rates and priors that mean the same where a normalised pixel is `unit` times the usual."""
    return {name: float(f"{values[name] * unit**power:.3g}") for name, power in _UNITS.items()}


def _recipe(config: ImageConfig, *, side: int) -> str:
    """How the student of `distill` is trained; `adaptive`, and without meaning, for others."""
    given = str(getattr(config, "recipe", "adaptive"))
    if given != AUTO:
        return given
    if getattr(config, "data", None):
        return "offline"
    by_size = SIZES[0] <= side <= SIZES[1] and config.preset == "fast" and config.images == AUTO
    return "generator" if config.images == "generator" or by_size else "adaptive"
