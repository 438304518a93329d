"""Where in a training checkpoint the weights lie, and what it says of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

#: Where a training checkpoint keeps its weights, in order of precedence. The moving average comes
#: first: it is what its authors evaluate.
CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model", "model_state_dict", "net"),
)

_AVERAGE = re.compile(r"(^|[_.])(ema|swa|avg|average|averaged)([_.]|$)")


def is_average(name: str) -> bool:
    """Whether a name, of a container or before a dot, is one for averaged weights."""
    return bool(_AVERAGE.search(name))


def container(content: Mapping[Any, Any]) -> str:
    """The first of `CONTAINERS` that holds weights; "" if none does.

    An average of the parameters alone is passed over: the statistics beside them were never
    averaged; and so is what holds no tensor, if another does.
    """
    held = {k: content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping | nn.Module)}
    full = {k: value for k, value in held.items() if _tensors(value)}
    held = full or held
    plain = [_entries(value) for key, value in held.items() if not is_average(key)]
    counted = any(_statistics(entries) for entries in plain)
    for key, value in held.items():
        entries = _entries(value)
        whole = all(isinstance(tensor, Tensor) for tensor in entries.values())
        fit = whole and (_statistics(entries) or not counted)
        if not is_average(key) or (entries and fit):
            return key
    return ""


def _entries(held: Mapping[Any, Any] | nn.Module) -> Mapping[Any, Any]:
    return held.state_dict() if isinstance(held, nn.Module) else held


def _tensors(held: Mapping[Any, Any] | nn.Module) -> bool:
    return any(isinstance(value, Tensor) for value in _entries(held).values())


def _statistics(entries: Mapping[Any, Any]) -> bool:
    return any(str(name).endswith("running_var") for name in entries)


def model_name(content: Mapping[Any, Any]) -> str:
    """The architecture in `arch` (timm, torch's ImageNet example) or in the `args` of training.

    Qualified, `timm:NAME`, where timm's own script wrote it.
    """
    options = _training_options(content)
    names = [content.get("arch"), options.get("model"), options.get("arch")]
    name = next((name for name in names if isinstance(name, str)), "")
    return f"timm:{name}" if name and _is_timms(options) and ":" not in name else name


def expectations(content: Mapping[Any, Any]) -> dict[str, Any]:
    """What the `args` of timm's training script say of its images, unchecked; else nothing.

    It leaves out what is as usual for the network.
    """
    options = _training_options(content)
    if not _is_timms(options):
        return {}
    names = ("mean", "std", "crop_pct", "interpolation", "input_size", "img_size")
    plain = {name: options.get(name) for name in names}
    said = {k: v for k, v in plain.items() if isinstance(v, int | float | str | list | tuple) and v}
    size = said.pop("img_size", None)
    return said if size is None else {"input_size": size, **said}


def _training_options(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    arguments = content.get("args")
    options = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    return options if isinstance(options, Mapping) else {}


def _is_timms(options: Mapping[Any, Any]) -> bool:
    return {"model", "img_size", "crop_pct"} <= options.keys()
