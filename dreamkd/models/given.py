"""What a caller states about a network, checked as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dreamkd.config import EvalConfig, options
from dreamkd.errors import ConfigError

#: Where a network may be loaded to: commands move it to their own `--device`.
DEVICES = ("cpu", "meta")


def checked(**stated: Any) -> dict[str, Any]:
    """What was stated, as the values that a card holds; what is None was not.

    Raises: ConfigError: a value is not of its kind, or out of its range.
    """
    given: dict[str, Any] = {}
    for name, value in stated.items():
        if value is None:
            continue
        plain = value.tolist() if hasattr(value, "tolist") else value  # of an array or a tensor
        given[name] = _names(plain) if name == "class_names" else parsed(name, plain)
    if "input_size" in given:
        given["input_size"] = _size(given["input_size"])
    return given


def legal(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What is legal of what others stated, as of `checked`; the rest was not said."""
    given: dict[str, Any] = {}
    for name, value in stated.items():
        with suppress(ConfigError):
            given |= checked(**{name: value})
    return given


def parsed(name: str, value: Any) -> Any:
    """The value of an option about models, as on the command line; None is one like any other.

    Raises: ConfigError: it is not of its kind, or out of its range.
    """
    fields = {field.name: field for field in options(EvalConfig)}
    return fields[name].parse(value)


def text(name: str, value: Any) -> str:
    """A value that must be text.

    Raises: ConfigError: it is something else, or empty.
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}: {str(value)[:80]!r} is not text")
    return value


def require_each(given: Mapping[str, Any], *, num_classes: int, channels: int) -> None:
    """Refuse what is given for each channel or class, but not for each.

    Raises: ConfigError: names the option, and how many it wants.
    """
    for name, count, kind in (
        ("mean", channels, "channels"),
        ("std", channels, "channels"),
        ("class_names", num_classes, "classes"),
    ):
        if name in given and len(given[name]) != count:
            raise ConfigError(
                f"{_flag(name)}: {len(given[name])} given, but the model has {count} {kind}; "
                "give one for each, or leave it out"
            )


def require_device(device: Any, *, pretrained: bool) -> str:
    """The name of the device, if networks are loaded to it.

    Raises: ConfigError: they are not, or it holds no weights.
    """
    name = str(device)
    if name not in DEVICES:
        raise ConfigError(
            f"device: {name!r} is not one of {', '.join(DEVICES)}; networks are loaded to the CPU, "
            "and each command moves them to its own --device"
        )
    if name == "meta" and pretrained:
        raise ConfigError("device: 'meta' holds no weights; pass pretrained=False with it")
    return name


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ConfigError(f"{_flag('class_names')}: {str(value)[:80]!r} is not a list of names")
    return tuple(map(str, value))


def _size(size: tuple[int, ...]) -> tuple[int, ...]:
    if len(size) not in (1, 2, 3):
        raise ConfigError(f"{_flag('input_size')}: {str(size)[:80]} is not H, (H, W) or (C, H, W)")
    return 2 * size if len(size) == 1 else size


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
