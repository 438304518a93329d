"""What is known about a network beside its weights, and its form as safetensors metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dreamkd.config import CROP_MODES, INTERPOLATIONS
from dreamkd.errors import ModelError, nearest

#: Why a network without `Card.has_choice` can be neither inverted nor learned from.
ONE_CLASS = "it has one class, and a softmax over one is 1 whatever the image"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A network's identity and what it expects of images."""

    architecture: str  # qualified: "torchvision:resnet50", "timm:cifar_resnet20"
    weights: str  # "IMAGENET1K_V1", timm's tag, "file NAME", "bundled", "random"
    source: str  # one line for a person: what was chosen and why
    num_classes: int
    class_names: tuple[str, ...] = ()  # in the order of the logits; may be empty
    input_size: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float  # side of the centre crop over the short side of the resized picture
    crop_mode: str = "center"  # of pictures of another shape, or "squash"
    parameters: int
    pretrained: bool  # the weights were learned from something; False for random ones
    data_free: bool = False  # no real image was used to make these weights

    def __post_init__(self) -> None:
        """Refuse what no network can mean; metadata of files comes through here.

        Raises:
            ModelError: a field is out of its range.
        """
        _require(self, "input_size", len(self.input_size) == 3, "(C, H, W)")
        channels = self.input_size[0]
        _require(self, "num_classes", self.num_classes >= 1, "at least 1")
        _require(self, "input_size", min(self.input_size) >= 1, "(C, H, W), each at least 1")
        _require(self, "input_size", max(self.input_size) <= 65536, "(C, H, W), each <= 65536")
        numbers = all(map(math.isfinite, self.mean))
        _require(self, "mean", numbers and len(self.mean) == channels, f"{channels} numbers")
        positive = all(math.isfinite(s) and s > 0 for s in self.std)
        _require(
            self, "std", positive and len(self.std) == channels, f"{channels} positive numbers"
        )
        known = self.interpolation in INTERPOLATIONS
        hint = nearest(self.interpolation, INTERPOLATIONS)
        _require(self, "interpolation", known, f"one of {', '.join(INTERPOLATIONS)}{hint}")
        _require(self, "crop_pct", 0 < self.crop_pct <= 1, "within (0, 1]")
        _require(self, "crop_mode", self.crop_mode in CROP_MODES, f"one of {', '.join(CROP_MODES)}")
        named = len(self.class_names) in (0, self.num_classes)
        _require(self, "class_names", named, f"{self.num_classes} names, or none")

    @property
    def takes_pictures(self) -> bool:
        """Whether its images are grey or RGB, which is what picture files hold."""
        return self.input_size[0] in (1, 3)

    @property
    def has_choice(self) -> bool:
        """Whether it has two classes or more; if not, see `ONE_CLASS`."""
        return self.num_classes > 1

    def facts(self) -> dict[str, Any]:
        """All but where it came from, which differs from machine to machine.

        A way of cropping that is everybody's is left out: runs began before there was another.
        """
        facts = asdict(self)
        del facts["source"], facts["weights"]
        if self.crop_mode == "center":
            del facts["crop_mode"]
        return facts

    def other_classes(self, whose: str, *, count: int, names: Sequence[str], role: str = "") -> str:
        """In one line, why the classes of `whose` are not the network's; empty if they may be.

        They are not where there are more or fewer of them, or the same names in another order.
        Other names may be other words for the same.

        Args:
            names: in the order of the labels; may be empty.
            role: what this network is beside another, such as "the teacher".
        """
        ours, theirs = self.class_names, tuple(names)
        own = f"{role} {self.architecture}".strip()
        if count != self.num_classes:
            named = f" ({_few(theirs)})" if theirs else ""
            has = f"{count} classes{named}, but {own} has {self.num_classes}"
            return f"{whose} has {has}"
        if ours != theirs and sorted(ours) == sorted(theirs):
            return (
                f"{whose}: its classes are in another order ({_few(theirs)}) than those of "
                f"{own} ({_few(ours)}): a label would mean two things"
            )
        return ""

    def require_classes(self, other: Card, *, whose: str, role: str) -> None:
        """Refuse a network beside this one that sorts into other classes.

        Args:
            whose: what the other is called.
            role: what this one is, since both may be of one architecture.
        Raises: ModelError: as `other_classes` says.
        """
        line = self.other_classes(
            whose, count=other.num_classes, names=other.class_names, role=role
        )
        if line:
            raise ModelError(line)


def _require(card: Card, field: str, holds: bool, legal: str) -> None:
    if not holds:
        value = str(getattr(card, field))[:80]
        raise ModelError(f"{field} is {value}; it must be {legal} ({card.source})")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def extents(sizes: Iterable[int]) -> str:
    """`3x224x224`."""
    return "x".join(map(str, sizes))


def to_metadata(card: Card) -> dict[str, str]:
    """The fields that `from_metadata` reads back, as safetensors metadata (strings, JSON)."""
    return {
        "format": "pt",
        "architecture": card.architecture,
        "num_classes": str(card.num_classes),
        "class_names": json.dumps(card.class_names),
        "input_size": json.dumps(card.input_size),
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
        "interpolation": card.interpolation,
        "crop_pct": repr(card.crop_pct),
        **({"crop_mode": card.crop_mode} if card.crop_mode != "center" else {}),
        "data_free": json.dumps(card.data_free),
    }


def from_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """The card fields that a file's metadata states, parsed; unknown keys are not ours to judge.

    Raises:
        ModelError: a value is not of its kind.
    """
    fields: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        if name not in metadata:
            continue
        try:
            fields[name] = parse(metadata[name])
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ModelError(
                f"{where}: metadata {name} is {metadata[name][:80]!r}, which cannot be read; "
                "write the file again, or strip its metadata and pass --arch"
            ) from error
    return fields


def _input_size(text: str) -> tuple[int, int, int]:
    channels, height, width = (_whole(n) for n in json.loads(text))
    return channels, height, width


def _whole(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError("not an integer")
    return number


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in json.loads(text))


def _names(text: str) -> tuple[str, ...]:
    return tuple(str(name) for name in json.loads(text))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("neither true nor false")
    return text.lower() == "true"


_PARSERS: dict[str, Callable[[str], Any]] = {
    "num_classes": int,
    "class_names": _names,
    "input_size": _input_size,
    "mean": _numbers,
    "std": _numbers,
    "interpolation": str,
    "crop_pct": float,
    "crop_mode": str,
    "data_free": _truth,
}
