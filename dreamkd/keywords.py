"""What Python code gives for an option, as the command line would have it."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch

from dreamkd.config.options import options
from dreamkd.errors import ConfigError

#: Options of the command line alone.
_PRINTED = ("json", "quiet")


def given(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options among keyword arguments: those that are None are as if left out.

    Raises: ConfigError: an option that only the command line heeds is set.
    """
    known = {field.name: field for field in options(config)}
    for name in _PRINTED:
        if values.get(name):
            raise ConfigError(
                f"{known[name].flag} has no effect in Python, where nothing is printed"
            )
    return {
        name: plain(name, value)
        for name, value in values.items()
        if value is not None or name not in known
    }


def plain(name: str, value: Any) -> Any:
    """A value as a config file could hold it.

    A device is its name; arrays, tensors, ranges and sets are lists; several classes are text, as
    weights of classes are.

    Raises: ConfigError: a class is named by what a list of names cannot hold.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()  # of an array or a tensor
    if isinstance(value, range | set | frozenset):
        value = sorted(value, key=lambda item: (isinstance(item, str), item))
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, torch.device):
        return str(value)
    if name == "classes" and isinstance(value, list | tuple):
        if comma := next((item for item in map(str, value) if "," in item), None):
            raise ConfigError(f"--classes: {comma!r} has a comma in it; give its number")
        return ",".join(map(str, value))
    if name == "class_weights" and isinstance(value, Mapping):
        return ",".join(f"{key}:{weight}" for key, weight in value.items())
    return value
