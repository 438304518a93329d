"""timm as a source of classifiers, those of our own that are registered with it included."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import nn

from dreamkd.config import CROP_MODES
from dreamkd.errors import ModelError, nearest, said
from dreamkd.events import OnEvent
from dreamkd.models import (
    downloads,
    registration,  # noqa: F401  (our networks' names are timm's)
)
from dreamkd.models.building import Defaults
from dreamkd.models.card import extents

_data_config: Any = resolve_data_config  # untyped in timm


@cache
def names() -> tuple[str, ...]:
    """Every registered name, without tags of weights."""
    return tuple(timm.list_models())


def defaults(name: str, tag: str = "") -> Defaults:
    """Preprocessing and classes of weights `tag`, timm's first choice unless told otherwise."""
    if tag and tag not in _tags(name):
        raise ModelError(
            f"timm:{name} has no weights {tag!r}{nearest(tag, _tags(name))}; "
            f"it has {', '.join(_tags(name)) or 'none'}"
        )
    cfg = _cfg(name, tag)
    data = _data_config(pretrained_cfg=cfg)
    num_classes = int(cfg.get("num_classes", 1000))
    return Defaults(
        tag=str(cfg.get("tag") or "timm") if _has_weights(cfg) else "",
        num_classes=num_classes,
        input_size=tuple(data["input_size"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_pct=float(data["crop_pct"]),
        crop_mode=data["crop_mode"] if data["crop_mode"] in CROP_MODES else CROP_MODES[0],
        advice=_published(cfg, data),
        class_names=_imagenet(num_classes, str(cfg.get("tag") or "")),
    )


def build(name: str, *, num_classes: int, input_size: tuple[int, int, int]) -> nn.Module:
    """The architecture with fresh weights.

    Raises:
        ModelError: it is an encoder without a place for a classifier.
        TypeError: it takes no other channel count or image size.
    """
    arguments = _arguments(name, input_size)
    module: nn.Module = timm.create_model(name, num_classes=num_classes, **arguments)
    if getattr(module, "num_classes", num_classes) != num_classes:
        raise ModelError(f"timm:{name} is an encoder: it cannot be given a classifier's last layer")
    return module


def build_pretrained(
    name: str, tag: str, input_size: tuple[int, int, int], *, on_event: OnEvent
) -> nn.Module:
    """The architecture with the weights of `tag`, from the hub's cache or downloaded into it.

    Args: on_event: told of a download.

    Raises:
        ModelError: timm has no weights for it, no network, or a damaged file in the cache.
    """
    cfg = _cfg(name, tag)
    where = f"timm:{name}{tag and '.'}{tag}"
    if not _has_weights(cfg):
        raise ModelError(
            f"{where} has no pretrained weights in timm; pass a checkpoint FILE "
            f"(dreamkd inspect {name} --no-pretrained looks at the architecture alone)"
        )
    if cfg.get("hf_hub_id"):
        file = cfg.get("hf_hub_filename") or ""
        path = downloads.from_hub(cfg["hf_hub_id"], file, where, on_event=on_event)
    else:
        path = downloads.from_url(cfg["url"], where, on_event=on_event)
    try:
        # timm reads the file with weights_only=True and renames what its architecture renamed.
        module: nn.Module = timm.create_model(
            f"{name}.{tag}" if tag else name,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(path)},
            **_arguments(name, input_size),
        )
    except MemoryError:
        raise
    except Exception as error:  # a foreign file fails in whatever way timm's loader stumbles
        usual = tuple(_data_config(pretrained_cfg=cfg)["input_size"])
        advice = "delete it"
        if input_size != usual:
            advice = f"leave --input-size out, if it does not fit any but {extents(usual[1:])}"
        raise ModelError(f"{where}: {path} cannot be loaded; {advice}: {said(error)}") from error
    return module


def _arguments(name: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """Only what differs from the default is passed: not every architecture takes it."""
    cfg = _cfg(name, "")
    channels, *size = input_size
    default = _data_config(pretrained_cfg=cfg)["input_size"]
    arguments: dict[str, Any] = {}
    if channels != default[0]:
        arguments["in_chans"] = channels
    if tuple(size) != tuple(default[1:]) and cfg.get("fixed_input_size"):
        arguments["img_size"] = tuple(size)
    return arguments


@cache
def _tags(name: str) -> tuple[str, ...]:
    found = timm.list_pretrained(f"{name}.*") if "." not in name else []
    return tuple(full.partition(".")[2] for full in found)


def _cfg(name: str, tag: str) -> dict[str, Any]:
    cfg: Any = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    return cfg.to_dict() if cfg is not None else {}


def _has_weights(cfg: dict[str, Any]) -> bool:
    return any(cfg.get(key) for key in ("url", "hf_hub_id", "file"))


def _published(cfg: dict[str, Any], data: dict[str, Any]) -> str:
    """How the published figures of the weights are taken, where other than they were trained."""
    tested, flags = _data_config(pretrained_cfg=cfg, use_test_size=True), []
    size, crop, mode = tested["input_size"], tested["crop_pct"], tested["crop_mode"]
    if size != data["input_size"]:
        sides = size[2:] if size[1] == size[2] else size
        flags.append(f"--input-size {','.join(map(str, sides))}")
    if crop != data["crop_pct"]:
        flags.append(f"--crop-pct {crop:g}")
    if mode not in CROP_MODES:
        flags.append(f"crops of the kind {mode!r}, which are none of ours")
    return f"its published figures are taken with {' '.join(flags)}" if flags else ""


def _imagenet(num_classes: int, tag: str) -> tuple[str, ...]:
    """ImageNet's class names where the tag says that the weights were last trained on them."""
    if num_classes != 1000 or not tag.endswith("in1k"):
        return ()
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
