"""Which architecture a state dict belongs to, from its names and shapes alone.

Building every architecture to compare takes minutes, so a committed index holds a fingerprint of
each: a hash of all names and shapes, without the shapes that follow the class count, the channel
count or the image size. What the index proposes is then compared shape by shape on the meta device.
Names that the installed libraries have and the index lacks are compared directly.

    python -m dreamkd.models.recognition        writes the index for the installed versions
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from dreamkd.errors import ModelError, UnrecognisedError
from dreamkd.models.building import AUXILIARY
from dreamkd.models.classifier import is_counter
from dreamkd.models.zoo import TO_GIVE_ONES_OWN, Architecture, architectures

INDEX = Path(__file__).with_name("index.json")

Shapes = dict[str, tuple[int, ...]]

# Class and channel counts that no layer has by accident, to see which shapes follow them.
_CLASSES = (1013, 1019)
_CHANNELS = (3, 5)
_USUAL = {"classes": _CLASSES[0], "channels": _CHANNELS[0]}


def essential(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What identifies a network: no counters of batches, no heads that only training uses."""
    return {k: v for k, v in state.items() if not is_counter(k) and not k.startswith(AUXILIARY)}


def recognise(
    state: Mapping[str, Tensor],
    *,
    where: str,
    hint: str = "",
    input_size: tuple[int, ...] | None = None,
) -> tuple[Architecture, str]:
    """The architecture of `state` and one line on how it was told.

    Names and shapes do not say everything: padding, activations and blur pools leave no trace in
    them. Among several that fit, a training checkpoint's own word decides; then torchvision's, as
    for bare names, with the others named; else the choice is the caller's.

    Args:
        where: the file, for error messages.
        hint: the name that a training checkpoint gives, perhaps with its library.
        input_size: (C, H, W) or (H, W) where it is known; networks with positions follow it.

    Raises:
        UnrecognisedError: none fits, or several of timm's do.
        ModelError: one would, but for a layer of another shape.
    """
    proposed = _proposed(_shapes(state))
    fitting = _fitting(proposed, state, input_size)
    if not fitting:
        differing = [_differing(architecture, state, input_size) for architecture in proposed]
        if differing and all(differing):
            raise ModelError(
                f"{where} is nearly {_listed(proposed, 'or')}, with {', '.join(differing[0][:3])}; "
                f"{TO_GIVE_ONES_OWN}"
            )
        nearly = f"; {_listed(proposed, 'or')} at another image size?" if proposed else ""
        raise UnrecognisedError(
            f"{where}: no known architecture has its {len(state)} entries "
            f"({', '.join(sorted(state)[:3])}, …){nearly}",
            f"pass --arch NAME{' and --input-size' if proposed else ''}",
        )
    library, _, name = hint.rpartition(":")
    named = [found for found in fitting if found.name == name.partition(".")[0]]
    if library:
        named = [found for found in named if found.library == library]
    if named:
        how = "named by its training checkpoint, which its names and shapes confirm"
        return named[0], how + _unless(named[1:])
    chosen, *others = fitting
    if others and chosen.library != "torchvision":
        raise UnrecognisedError(
            f"{where}: {_listed(fitting)} have the same names and shapes and may compute or expect "
            "different things",
            "choose with --arch NAME",
        )
    return chosen, f"recognised from its names and shapes{_unless(others)}"


def known(state: Mapping[str, Tensor], input_size: tuple[int, ...] | None = None) -> bool:
    """Whether some architecture has these names and shapes."""
    return bool(_fitting(_proposed(_shapes(state)), state, input_size))


def _fitting(
    proposed: list[Architecture],
    state: Mapping[str, Tensor],
    input_size: tuple[int, ...] | None,
) -> list[Architecture]:
    return [
        found
        for found in proposed or _unindexed()
        if sizes(found, state, input_size=input_size) is not None
    ]


def _unless(others: list[Architecture]) -> str:
    return f"; if it is {_listed(others, 'or')}, pass --arch" if others else ""


def _listed(architectures: list[Architecture], word: str = "and") -> str:
    *most, last = map(str, architectures)
    return f"{', '.join(most)} {word} {last}" if most else last


def sizes(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    *,
    input_size: tuple[int, ...] | None = None,
) -> tuple[int, int] | None:
    """Class count and channel count of `state` as weights of `architecture`; None: no fit."""
    pair = _probe(architecture, input_size)
    shapes = _shapes(state)
    if pair is None or pair[0].keys() != shapes.keys():
        return None
    counts = _USUAL | _told(pair, shapes)
    return (counts["classes"], counts["channels"]) if _scaled(*pair, counts) == shapes else None


def told(
    architecture: Architecture, state: Mapping[str, Tensor], input_size: tuple[int, ...]
) -> dict[str, int]:
    """What `state` says of "classes" and "channels", even where it does not fit otherwise."""
    pair = _probe(architecture, input_size)
    return _told(pair, _shapes(state)) if pair else {}


def _told(pair: tuple[Shapes, Shapes], shapes: Shapes) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, kind, dim, multiple in _following(*pair):
        shape = shapes.get(name, ())
        if len(shape) == len(pair[0][name]) and shape[dim] >= multiple:
            found.setdefault(kind, shape[dim] // multiple)
    return found


def _differing(
    architecture: Architecture, state: Mapping[str, Tensor], input_size: tuple[int, ...] | None
) -> list[str]:
    """In words, the entries that have other shapes; none where these follow the image size."""
    pair, shapes = _probe(architecture, input_size), _shapes(state)
    if pair is None:
        return []
    height, width = (input_size or architecture.defaults().input_size)[-2:]
    try:
        doubled = _built(architecture, _CLASSES[0], (_CHANNELS[0], 2 * height, 2 * width))
    except ModelError:  # its size is fixed
        doubled = pair[0]
    expected = _scaled(*pair, _USUAL | _told(pair, shapes))
    names = [name for name in expected if shapes[name] != expected[name]]
    if any(doubled.get(name) != pair[0][name] for name in names):
        return []
    return [f"{name} {[*shapes[name]]} instead of {[*expected[name]]}" for name in names]


def _proposed(shapes: Shapes) -> list[Architecture]:
    """Architectures of the installed libraries whose fingerprint is that of `shapes`."""
    names = {
        name
        for free, fingerprints in _index()
        if shapes.keys() >= set(free)
        for name in fingerprints.get(_fingerprint(shapes, free), ())
    }
    return [architecture for architecture in architectures() if str(architecture) in names]


def _unindexed() -> list[Architecture]:
    """Architectures that the index lacks, as after an update of a library."""
    indexed = {name for _, groups in _index() for names in groups.values() for name in names}
    return [architecture for architecture in architectures() if str(architecture) not in indexed]


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in essential(state).items()}


@cache
def _probe(
    architecture: Architecture, input_size: tuple[int, ...] | None = None
) -> tuple[Shapes, Shapes] | None:
    """Shapes for two class and channel counts; None where it cannot be built."""
    try:
        height, width = (input_size or architecture.defaults().input_size)[-2:]
        first = _built(architecture, _CLASSES[0], (_CHANNELS[0], height, width))
        try:
            return first, _built(architecture, _CLASSES[1], (_CHANNELS[1], height, width))
        except ModelError:  # it takes no other channel count
            return first, _built(architecture, _CLASSES[1], (_CHANNELS[0], height, width))
    except ModelError:
        return None


def _built(architecture: Architecture, classes: int, size: tuple[int, int, int]) -> Shapes:
    module: nn.Module = architecture.build(num_classes=classes, input_size=size, device="meta")
    return _shapes(module.state_dict())


def _following(first: Shapes, second: Shapes) -> Iterator[tuple[str, str, int, int]]:
    """(name, "classes" or "channels", dimension, multiple) of every dimension that follows one."""
    for name, shape in first.items():
        for dim, (one, other) in enumerate(zip(shape, second[name], strict=True)):
            if one == other:
                continue
            if one * _CLASSES[1] == other * _CLASSES[0]:
                yield name, "classes", dim, one // _CLASSES[0]
            elif one * _CHANNELS[1] == other * _CHANNELS[0]:
                yield name, "channels", dim, one // _CHANNELS[0]


def _scaled(first: Shapes, second: Shapes, counts: Mapping[str, int]) -> Shapes:
    """The shapes for other counts."""
    expected = {name: list(shape) for name, shape in first.items()}
    for name, kind, dim, multiple in _following(first, second):
        expected[name][dim] = multiple * counts[kind]
    return {name: tuple(shape) for name, shape in expected.items()}


def _fingerprint(shapes: Shapes, free: Iterable[str]) -> str:
    """Hash of names and shapes; of the `free` ones the name and the number of dimensions."""
    free = set(free)
    entries = [
        [name, len(shape) if name in free else list(shape)]
        for name, shape in sorted(shapes.items())
    ]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:12]


@cache
def _index() -> list[tuple[list[str], dict[str, list[str]]]]:
    entries = json.loads(INDEX.read_text(encoding="utf-8"))["fingerprints"]
    return [(entry["free"], entry["architectures"]) for entry in entries]


def write_index(path: Path = INDEX) -> None:
    """Fingerprint every architecture of the installed libraries."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for architecture in architectures():
        free_and_shapes = _free(architecture)
        if free_and_shapes is not None:
            free, shapes = free_and_shapes
            by_hash = groups.setdefault(free, {})
            by_hash.setdefault(_fingerprint(shapes, free), []).append(str(architecture))
        _probe.cache_clear()
    entries = [{"free": list(free), "architectures": groups[free]} for free in sorted(groups)]
    versions = {name: version(name) for name in ("timm", "torchvision")}
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    path.write_text(
        f'{{"versions":{json.dumps(versions)},"fingerprints":[\n{lines}\n]}}\n', encoding="utf-8"
    )


def _free(architecture: Architecture) -> tuple[tuple[str, ...], Shapes] | None:
    """Names whose shape follows class count, channel count or image size, and all shapes."""
    pair = _probe(architecture)
    if pair is None:
        return None
    first, second = pair
    free = {name for name in first if first[name] != second[name]}
    channels, height, width = architecture.defaults().input_size
    try:
        doubled = _built(architecture, _CLASSES[0], (channels, 2 * height, 2 * width))
    except ModelError:  # its size is fixed
        doubled = first
    if doubled.keys() == first.keys():
        free |= {name for name in first if first[name] != doubled[name]}
    return tuple(sorted(free)), first


if __name__ == "__main__":
    write_index()
