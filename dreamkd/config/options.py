"""Fields that know their help, legal range and paper symbol; parsing and merging of their values.

    value = default < --config FILE < flag given

A default of `auto` is settled by the preset once the model is known (`presets`).

Values arrive as text (flags) or as TOML/JSON values (files); both pass through `OptionField.parse`,
so that every illegal value is refused with the same line.
"""

from __future__ import annotations

import dataclasses
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import PurePath
from typing import Any, TypeVar

from dreamkd.errors import ConfigError, nearest

AUTO = "auto"


#: No whole number is larger: torch counts in 64 bits.
LARGEST = 2**63 - 1

#: Nor any other: it computes in single precision.
LARGEST_FLOAT = 3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field tells beyond its name, type and default."""

    help: str
    group: str
    symbol: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # exclusive minimum
    choices: tuple[str, ...] = ()
    argument: bool = False  # positional on the command line
    auto: str = ""  # a number that may be "auto", and what auto then means
    identity: bool = True  # part of what makes two runs the same run


def option(default: Any = dataclasses.MISSING, **details: Any) -> Any:
    """A dataclass field that is an option; without `default` the user must give it."""
    return dataclasses.field(default=default, metadata={"option": Option(**details)})


@dataclass(frozen=True)
class OptionField:
    """One option of one command: its name, type, default and documentation."""

    name: str
    type: Any
    default: Any  # dataclasses.MISSING where the user must give it
    option: Option

    @property
    def flag(self) -> str:
        """`--name-with-dashes`, or NAME of a positional argument."""
        return self.name.upper() if self.option.argument else "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """Whether the user must give a value."""
        return self.default is dataclasses.MISSING

    @property
    def is_flag(self) -> bool:
        """Whether it is a switch without a value."""
        return self.type is bool

    @property
    def is_list(self) -> bool:
        """Whether several values are legal."""
        return typing.get_origin(self.type) is tuple

    @property
    def kind(self) -> type:
        """The scalar type: str, int, float or bool."""
        if self.is_list:
            (kind, *_) = typing.get_args(self.type)
            return typing.cast("type", kind)
        if isinstance(self.type, types.UnionType):
            kinds = [t for t in typing.get_args(self.type) if t is not type(None)]
            kind = next((t for t in kinds if t in (int, float)), str)
            return typing.cast("type", kind)
        return typing.cast("type", self.type)

    @property
    def legal(self) -> str:
        """The legal values in words, empty where anything goes."""
        o = self.option
        if o.choices:
            return "|".join(o.choices)
        bounds = [f">{_bound(o.above)}"] if o.above is not None else []
        if o.minimum is not None and o.maximum is not None:
            bounds.append(f"{_bound(o.minimum)}..{_bound(o.maximum)}")
        elif o.minimum is not None:
            bounds.append(f">={_bound(o.minimum)}")
        elif o.maximum is not None:
            bounds.append(f"<={_bound(o.maximum)}")
        return " and ".join(bounds) + (" or auto" if o.auto and bounds else "")

    def parse(self, value: Any) -> Any:
        """The typed value of `value`, text or already typed.

        Raises: ConfigError: wrong type or out of range; the line names the flag and what is legal.
        """
        if value is None and type(None) in typing.get_args(self.type):
            return None
        if self.is_list:
            items = value.split(",") if isinstance(value, str) else value
            items = items if isinstance(items, (list, tuple)) else [items]
            return tuple(self._parse_one(item) for item in items)
        return self._parse_one(value)

    def _parse_one(self, value: Any) -> Any:
        if self.option.auto and value == AUTO:
            return AUTO
        o = self.option
        if isinstance(value, bool) and {"on", "off"} <= {*o.choices}:
            value = "on" if value else "off"
        parsed, shown = self._convert(value), _shown(value)
        if o.choices and parsed not in o.choices:
            raise ConfigError(
                f"{self.flag}: {shown} is not one of {', '.join(o.choices)}"
                f"{nearest(str(value), o.choices)}"
            )
        if isinstance(parsed, float) and not math.isfinite(parsed):
            raise ConfigError(f"{self.flag}: {shown} is not a finite number")
        if self.kind is float and abs(parsed) > LARGEST_FLOAT:
            raise ConfigError(
                f"{self.flag}: {shown} is out of range; it is beyond single precision"
            )
        if self.kind is int and abs(parsed) > LARGEST:
            raise ConfigError(f"{self.flag}: {shown} is out of range; it has more than 64 bits")
        if self.kind in (int, float) and not self._within(parsed):
            raise ConfigError(f"{self.flag}: {shown} is out of range; legal: {self.legal}")
        return parsed

    def _convert(self, value: Any) -> Any:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        legal = f"one of {', '.join(c)}" if (c := self.option.choices) else names[self.kind]
        wrong = ConfigError(f"{self.flag}: {_shown(value)} is not {legal}")
        if self.kind is bool:
            if not isinstance(value, bool):
                raise wrong
            return value
        if isinstance(value, (bool, list, tuple, dict)) or value is None:
            raise wrong
        if self.kind is int and isinstance(value, float):
            raise wrong
        if self.kind is str and not isinstance(value, (str, PurePath, Real)):
            kind = type(value).__name__  # such as a network, whose text is pages
            raise ConfigError(f"{self.flag}: a value of type {kind} is not text")
        try:
            converted = self.kind(value)
        except (ValueError, OverflowError, TypeError):  # TypeError: TOML has dates
            raise wrong from None
        if self.kind is str and (converted == "" or "\0" in converted):
            raise wrong  # neither a name nor a path
        if self.kind is str:
            self._require_encodable(converted)
        return converted

    def _require_encodable(self, text: str) -> None:
        try:
            os.fsencode(text)  # half a character, "\ud800" in JSON, has no bytes
        except UnicodeEncodeError:
            raise ConfigError(
                f"{self.flag}: {_shown(text)} cannot be written in {sys.getfilesystemencoding()}"
            ) from None

    def _within(self, value: float) -> bool:
        o = self.option
        return (
            (o.minimum is None or value >= o.minimum)
            and (o.maximum is None or value <= o.maximum)
            and (o.above is None or value > o.above)
        )


def _shown(value: Any) -> str:
    """`value` as a message quotes it: short, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # 0xff... of thousands of digits, legal in TOML, has no decimal text
        return "that number"


def _bound(value: float) -> str:
    return "2^63-1" if value == LARGEST else f"{value:g}"


Config = TypeVar("Config")


def options(config: type) -> Iterator[OptionField]:
    """The options of a config class, arguments first, then in order of definition."""
    hints = typing.get_type_hints(config)
    fields = [
        OptionField(f.name, hints[f.name], f.default, f.metadata["option"])
        for f in dataclasses.fields(config)
    ]
    yield from (f for f in fields if f.option.argument)
    yield from (f for f in fields if not f.option.argument)


def merge(
    config: type[Config],
    given: Mapping[str, Any],
    *,
    file: Mapping[str, Any] | None = None,
) -> Config:
    """Build a config: default < file < flags given.

    Args:
        given: values of the flags that were given, by field name.
        file: values of a config file, by field name.
    Raises: ConfigError: unknown key, illegal value, missing argument.
    """
    fields = {f.name: f for f in options(config)}
    file = {key.replace("-", "_"): value for key, value in (file or {}).items()}
    for key in (*file, *given):
        if key not in fields:
            raise ConfigError(f"unknown setting {key!r}{nearest(key, fields)}")
    values = {**file, **given}
    parsed = {name: fields[name].parse(value) for name, value in values.items()}
    for name, field in fields.items():
        if field.required and name not in parsed:
            raise ConfigError(f"{field.flag} is missing: {field.option.help}")
    built = config(**parsed)
    check = getattr(built, "check", None)
    if check is not None:
        check()
    return built


def check_bases(config: type, instance: Any) -> None:
    """Run the `check` of every class that `config` is made of, its own left out.

    Raises: ConfigError: what they do not allow.
    """
    for base in config.__mro__[1:]:
        if "check" in vars(base):
            vars(base)["check"](instance)


def refuse_idle(instance: Any) -> None:
    """Refuse options that were given and have no effect, by the instance's `idle`.

    Raises: ConfigError: names the option, and what makes it so.
    """
    fields = type(instance).__dataclass_fields__
    for name, by in instance.idle().items():
        if getattr(instance, name) != fields[name].default:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect with {by}")
