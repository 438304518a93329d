"""From a name or a file to a classifier that knows what it expects, and back to a file."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamkd import checkpoint
from dreamkd.containers import is_average
from dreamkd.errors import ModelError
from dreamkd.events import OnEvent, ignore
from dreamkd.identity import is_path
from dreamkd.models import recognition, zoo
from dreamkd.models.card import extents, from_metadata, to_metadata
from dreamkd.models.classifier import OWN, Classifier
from dreamkd.models.expected import card_of, channels_of, completed, sized
from dreamkd.models.given import checked, legal, parsed, require_device, require_each
from dreamkd.models.oldnames import current
from dreamkd.models.wrapping import AVERAGE, Network, unwrapped
from dreamkd.models.zoo import Architecture


def load(
    spec: str | Path,
    *,
    arch: str | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    input_size: int | tuple[int, ...] | None = None,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    trust_pickle: bool = False,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> Classifier:
    """Load any classifier: a bundled teacher, a name of torchvision or timm, a checkpoint file.

    A bare name is a bundled teacher's, else torchvision's with its V1 weights (the paper's), else
    timm's; `torchvision:NAME`, `timm:NAME` and a tag of weights (`NAME.TAG`) force one. What a card
    says comes from the caller, else from the file's metadata, else from the architecture.

    Args:
        spec: the name, or the path of a file.
        arch: the architecture of a file whose metadata, names and shapes do not tell it.
        pretrained: false for random weights from seed 0, with nothing downloaded.
        num_classes: must agree with the weights; free with random ones.
        input_size: (C, H, W), where C must agree with the weights, or (H, W), or H of a square.
        mean: per channel, of images in [0, 1].
        std: per channel.
        class_names: in the order of the logits.
        interpolation: of the resize of pictures, one of `config.INTERPOLATIONS`.
        crop_pct: side of the centre crop over the resized short side, in (0, 1].
        crop_mode: of pictures of another shape, one of `config.CROP_MODES`.
        trust_pickle: let a file run code while it is read.
        device: "meta" for shapes without weights, which needs `pretrained=False`; else the CPU.
        on_event: told of a download.

    Raises:
        ConfigError: what is said of the network is not legal, or not one for each channel or class.
        ModelError: unknown, ambiguous, damaged or untrusted; weights that do not fit; no network.
    """
    given = checked(
        num_classes=num_classes,
        input_size=input_size,
        mean=mean,
        std=std,
        class_names=class_names,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    device = require_device(device, pretrained=pretrained)
    name: str = parsed("model", spec)
    path = _path(name)
    if path is not None:
        return _from_file(
            path, given, arch=arch, pretrained=pretrained, trust_pickle=trust_pickle, device=device
        )
    if arch is not None:
        raise ModelError(
            f"--arch {arch} is for checkpoint files; {name} already is an architecture"
        )
    architecture = zoo.resolve(name)
    if pretrained:
        return _from_library(architecture, given, name, on_event)
    defaults = architecture.defaults()
    counts = given.get("num_classes", defaults.num_classes), sized(given, defaults)[0]
    require_each(given, num_classes=counts[0], channels=counts[1])
    return _random(architecture, given, f"{name}: {architecture}", device=device)


def save(classifier: Classifier, path: str | Path, *, extra: dict[str, str] | None = None) -> None:
    """Write safetensors that `load` needs nothing else to read; equal content, equal bytes.

    Args:
        extra: further metadata, such as `licence` and `trained`; wins over the card's.

    Raises:
        RunError: the file cannot be written.
    """
    metadata = to_metadata(classifier.card) | (extra or {})
    checkpoint.write(path, classifier.module.state_dict(), metadata)


def is_file(spec: str) -> bool:
    """Whether `load` takes `spec` for weights, of a file or bundled, not for an architecture."""
    return _path(spec) is not None


def _path(spec: str) -> Path | None:
    """The file that `spec` means; None for a name. A known name wins over a file of that name."""
    if spec in zoo.bundled():
        return zoo.BUNDLED / f"{spec}.safetensors"
    if is_path(spec) or (os.path.exists(spec) and spec not in zoo.all_names()):
        return Path(spec)
    return None


def _from_library(
    architecture: Architecture, given: Mapping[str, Any], spec: str, on_event: OnEvent
) -> Classifier:
    defaults = architecture.defaults()
    if not defaults.num_classes:
        raise ModelError(_no_head(architecture))
    input_size = sized(given, defaults)
    if given.get("num_classes", defaults.num_classes) != defaults.num_classes:
        raise ModelError(_other(spec, "classes", defaults.num_classes, given["num_classes"]))
    if input_size[0] != defaults.input_size[0]:
        raise ModelError(_other(spec, "channels", defaults.input_size[0], input_size[0]))
    require_each(given, num_classes=defaults.num_classes, channels=input_size[0])
    module = zoo.pretrained(architecture, input_size, on_event=on_event)
    source = f"{spec}: {architecture} with weights {defaults.tag}"
    other = Architecture("timm", architecture.name)
    if spec == architecture.name and architecture.library == "torchvision" and other.exists():
        source += f" (also in timm: write {other})"
    source += f"; {defaults.advice}" if defaults.advice else ""
    given = {**given, "input_size": input_size}
    card = card_of(architecture, module, defaults, given, weights=defaults.tag, source=source)
    return Classifier(module, card)


def _random(
    architecture: Architecture, given: Mapping[str, Any], source: str, *, device: str
) -> Classifier:
    defaults = architecture.defaults()
    num_classes = given.get("num_classes", defaults.num_classes)
    if not num_classes:
        raise ModelError(_no_head(architecture))
    input_size = sized(given, defaults)
    module = architecture.build(num_classes=num_classes, input_size=input_size, device=device)
    if num_classes != defaults.num_classes:
        defaults = replace(defaults, num_classes=num_classes, class_names=())
    source = f"{source}, random weights"
    given = {**given, "input_size": input_size}
    card = card_of(architecture, module, defaults, given, weights="random", source=source)
    return Classifier(module, card)


def _from_file(
    path: Path,
    given: Mapping[str, Any],
    *,
    arch: str | None,
    pretrained: bool,
    trust_pickle: bool,
    device: str,
) -> Classifier:
    found = checkpoint.read(path, trust_pickle=trust_pickle)
    found = replace(found, state=current(found.state))
    trained = legal(found.expectations)
    stated = {**trained, **from_metadata(found.metadata, path.name)}
    everything = recognition.essential(found.state)
    architecture, how, network = _identified(
        found, path, arch=arch, input_size=given.get("input_size") or stated.get("input_size")
    )
    average = AVERAGE if is_average(found.container) else ""
    container = f" under {found.container!r}{average}" if found.container else ""
    bundled = path.parent == zoo.BUNDLED
    source = f"{path.stem if bundled else path}: {architecture}{container}, {how}"
    state, defaults = network.state, architecture.defaults()
    fields = {**stated, **given}
    num_classes, channels = _counts(path, architecture, state, given, stated, pretrained=pretrained)
    require_each(given, num_classes=num_classes, channels=channels)
    if trained:
        words = ", ".join(name.replace("_", " ") for name in trained)
        source += f"; {words} as the options of its training say"
    fields, sources = completed(fields, everything, network.place, channels=channels)
    source += sources
    if defaults.of_files and "architecture" not in found.metadata:
        source += f"; {defaults.of_files}"
    size = (channels, *sized(fields, defaults)[1:])
    fields |= {"num_classes": num_classes, "input_size": size}
    if not pretrained:
        return _random(architecture, fields, source, device=device)
    module = architecture.build(num_classes=num_classes, input_size=size)
    zoo.load_state(module, state, f"{path} as {architecture}")
    weights = "bundled" if bundled else f"file {path.name}"
    defaults = replace(defaults, class_names=())  # the architecture's classes are not the file's
    return Classifier(
        module, card_of(architecture, module, defaults, fields, weights=weights, source=source)
    )


def _counts(
    path: Path,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    given: Mapping[str, Any],
    stated: Mapping[str, Any],
    *,
    pretrained: bool,
) -> tuple[int, int]:
    """Classes and channels of a file's weights, which what is given and stated must agree with.

    Raises: ModelError: they do not agree.
    """
    defaults, fields = architecture.defaults(), {**stated, **given}
    size = fields.get("input_size", defaults.input_size)
    fits = _fits(architecture, state, [size, stated.get("input_size"), defaults.input_size])
    if fits and size not in fits and pretrained:
        sides = (extents(known[-2:]) for known in (*fits, size))
        raise ModelError(_other(path, "pixels", *sides))
    if not fits:  # load_state names what is wrong beside the counts, which are free
        told = recognition.told(architecture, state, size)
        classes = fields.get("num_classes", defaults.num_classes or 1000)
        return told.get("classes", classes), told.get("channels", channels_of(size) or 3)
    num_classes, channels = next(iter(fits.values()))
    for wanted in (given, stated):
        if wanted.get("num_classes", num_classes) != num_classes:
            raise ModelError(_other(path, "classes", num_classes, wanted["num_classes"]))
        if channels_of(wanted.get("input_size", ())) not in (None, channels):
            raise ModelError(_other(path, "channels", channels, wanted["input_size"][0]))
    return num_classes, channels


def _fits(
    architecture: Architecture, state: Mapping[str, Tensor], input_sizes: Sequence[Any]
) -> dict[tuple[int, ...], tuple[int, int]]:
    """Class and channel count of `state` at the first of the sizes that it is of; empty: none."""
    for size in filter(None, input_sizes):
        if counts := recognition.sizes(architecture, state, input_size=size):
            return {size: counts}
    return {}


def _identified(
    found: checkpoint.Checkpoint,
    path: Path,
    *,
    arch: str | None,
    input_size: tuple[int, ...] | None,
) -> tuple[Architecture, str, Network]:
    """The architecture of a file, one line on how it was told, and the network inside."""
    state = recognition.essential(found.state)
    stated = arch or found.metadata.get("architecture")
    if stated is None:
        network = unwrapped(
            state, lambda entries: recognition.known(entries, input_size), where=str(path)
        )
        architecture, how = recognition.recognise(
            network.state, where=str(path), hint=found.model_name, input_size=input_size
        )
        return architecture, how + network.said, network
    if stated.startswith(OWN):
        raise ModelError(
            f"{path} holds weights of a network that was given in Python, {stated[len(OWN) :]!r}, "
            "and not what computes with them: load_state_dict them into it and pass "
            "dreamkd.Classifier.of(...), or pass --arch"
        )
    architecture = zoo.resolve(stated)
    sizes = [input_size, architecture.defaults().input_size]
    network = unwrapped(
        state, lambda entries: bool(_fits(architecture, entries, sizes)), where=str(path)
    )
    how = f"as {'--arch' if arch else 'its metadata'} says{network.said}"
    return architecture, how, network


def _other(where: object, what: str, weights: object, wanted: object) -> str:
    advice = "leave it out, or take weights that were trained for it"
    return f"{where}: the weights are for {weights} {what}, not {wanted}; {advice}"


def _no_head(architecture: Architecture) -> str:
    return (
        f"{architecture} is a feature extractor: its weights have no classes; pass a classifier "
        f"(dreamkd inspect {architecture} --no-pretrained --num-classes N looks at the "
        "architecture alone)"
    )
