"""What makes two runs the same run: settings that shape the outcome, and versions of what computes.

A file counts by what it holds, which hashes beside the settings vouch for, and not by where it
lies; a GPU counts as one, and not by its number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dreamkd.errors import RunError

#: The file of a run folder that says what the run is.
RESOLVED = "resolved.json"

#: Settings that may be paths, of what a run keeps hashes of.
BY_CONTENT = ("model", "teacher", "student", "bn_prior", "verifier", "data", "labels")

#: Of these, settings whose names without a source (`sklearn:`) are paths.
_PLACES = ("data", "labels")

#: Endings of checkpoints.
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")


def requested_settings(config: Any) -> dict[str, Any]:
    """The settings that make up a run's identity, as JSON values."""
    settings = {
        field.name: as_json(getattr(config, field.name))
        for field in fields(config)
        if field.metadata["option"].identity
    }
    return settings | {"device": device_kind(str(settings["device"]))}


def device_kind(device: str) -> str:
    """`cuda` of `cuda:1`."""
    return device.partition(":")[0]


def versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic a run depends on.

    Raises: RunError: as of `installed`.
    """
    return {name: installed(name) for name in ("dreamkd", "torch", "torchvision", "timm")}


def installed(package: str) -> str:
    """The version of a package.

    Raises: RunError: it is not installed, as ours where its source alone is on PYTHONPATH.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        source = "." if package == "dreamkd" else package
        raise RunError(f"{package} is not installed: python -m pip install {source}") from None


#: Values of settings that leave them to be decided.
_OPEN: tuple[Any, ...] = ("auto", [])

#: Those that say how it is computed, and not what.
_MACHINE = ("device", "precision", "threads", "compile")


def differing(
    requested: Mapping[str, Any], *, then: Mapping[str, Any], decided: Mapping[str, Any]
) -> list[str]:
    """In words, the settings that are not what was asked for then.

    A value is the same if it equals what was asked for then, or what an open setting became; so is
    a whole of decided settings, whatever it leaves open about the machine. But what became of a
    setting that was given is not the same as giving it: a plan's steps are no plan.
    """
    if all(
        _same(name, value, decided.get(name))
        or (name in _MACHINE and value in _OPEN and value == then.get(name))
        for name, value in requested.items()
    ):
        return []
    lines = []
    for name, value in requested.items():
        asked, became = then.get(name), decided.get(name)
        kept = _same(name, value, became)
        if not _same(name, value, asked) and not (asked in _OPEN and kept):
            lines.append(f"{name} is {(asked if kept else became)!r} there and {value!r} here")
    return lines


def differing_versions(then: Mapping[str, Any]) -> list[str]:
    """In words, the packages that are of another version now."""
    return [
        f"{name} {then.get(name)} (now {now})"
        for name, now in versions().items()
        if then.get(name) != now
    ]


def apart(then: Any, now: Any) -> tuple[Any, Any]:
    """Of two mappings, and of those that lie in them, what is not the same."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return then, now
    keys = [key for key in then | now if then.get(key) != now.get(key)]
    pairs = {key: apart(then.get(key), now.get(key)) for key in keys}
    return {key: a for key, (a, _) in pairs.items()}, {key: b for key, (_, b) in pairs.items()}


def _same(name: str, value: Any, then: Any) -> bool:
    return bool(value == then) or (name in BY_CONTENT and _moved(name, value, then))


def _moved(name: str, value: Any, then: Any) -> bool:
    """Whether both are paths, or lists that differ by paths alone.

    A bare word (`weights`) may be a name or a file, and what was a file need not lie there any
    more: it is taken for one beside a path whose last part it is. What is let through here and is
    another network after all, its hash refuses.
    """
    if isinstance(value, list) and isinstance(then, list):
        pairs = zip(value, then, strict=False)
        return len(value) == len(then) and all(a == b or _moved(name, a, b) for a, b in pairs)
    if not isinstance(value, str) or not isinstance(then, str):
        return False
    paths = [is_path(s) or (name in _PLACES and ":" not in s) for s in (value, then)]
    return all(paths) or (any(paths) and Path(value).name == Path(then).name)


def is_path(value: Any) -> bool:
    """Whether a setting is written as a path: with a folder, or with the ending of a checkpoint."""
    return isinstance(value, str) and ("/" in value or Path(value).suffix in FILES)


def as_json(value: Any) -> Any:
    """What `value` is once it has been written and read."""
    return json.loads(json.dumps(value))
