"""Labelled images for evaluation and training, whatever their container.

`open_images` gives a map-style `ImageSet` of uint8 images as a network's preprocessing wants them;
`batches` reads it in order on a few threads, `stack` reads all of it into memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamkd.ahead import ahead
from dreamkd.data.folders import open_path
from dreamkd.data.libraries import open_sklearn, open_torchvision
from dreamkd.data.pictures import FORMS, Pictures
from dreamkd.data.preprocessing import Preprocessing, preprocess
from dreamkd.errors import DataError, nearest
from dreamkd.events import Hint, OnEvent, Progress, ignore
from dreamkd.samples import joined

if TYPE_CHECKING:
    from dreamkd.models import Card

__all__ = [
    "FORMS",
    "ImageSet",
    "Preprocessing",
    "batches",
    "check_classes",
    "check_labels",
    "open_images",
    "preprocess",
    "stack",
]


#: Pictures that a thread decodes in a row.
_READ = 256


@dataclass(frozen=True)
class ImageSet:
    """A map-style data set of (uint8 image (C, H, W), label)."""

    pictures: Pictures
    preprocessing: Preprocessing
    names: tuple[str, ...] = ()  # of a network, whose numbers then count
    numbers: tuple[int, ...] = ()  # in it, of each of the pictures' own classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; empty if the data do not name their classes."""
        return self.names or self.pictures.class_names

    @property
    def source(self) -> str:
        """One line that says what is read."""
        return self.pictures.source

    def wanted_by(self, card: Card, **given: Any) -> ImageSet:
        """The same pictures as a network wants them; those that were synthesised are not cropped.

        Args: given: fields of `Preprocessing` to take instead.
        """
        how = Preprocessing.of(card)
        if self.pictures.synthesised:
            how = replace(how, crop_pct=1.0)
        return replace(self, preprocessing=replace(how, **given))

    def labelled_by(self, card: Card, *, on_event: OnEvent = ignore) -> ImageSet:
        """The same, labelled by the names of classes where the network's are the same words.

        Case, spaces, `_` and `-` make no other word where the network has no two that differ so.
        Their order may then be another, and the pictures may be of some of the classes alone. Where
        no name is the network's they go by their order, which is said.

        Raises: DataError: some of the data's names are the network's, and others are not.
        """
        numbers = _numbers(self.pictures, card)
        if numbers:
            return replace(self, names=card.class_names, numbers=numbers)
        theirs = self.class_names
        if theirs and len(theirs) == len(card.class_names):
            pairs = zip(theirs[:2], card.class_names, strict=False)
            such = ", ".join(f"{name!r} is {known!r}" for name, known in pairs)
            on_event(Hint(f"{self.source}: no name is the network's; by their order {such}, …"))
        elif theirs and card.architecture.startswith("timm:") and not card.class_names:
            one, other = _timms_first(theirs)
            if one:
                on_event(
                    Hint(
                        f"{self.source}: classes are numbered by code points, so that {other!r} "
                        f"comes before {one!r}; timm's training has it the other way round: "
                        "--class-names FILE gives the network's order"
                    )
                )
        return self

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self.pictures[index]
        try:
            number = self.numbers[label] if self.numbers else label
            return preprocess(picture, self.preprocessing), number
        except (DataError, OSError, ValueError) as error:
            raise DataError(f"{self.pictures.name(index)}: {error}") from error


def _timms_first(names: Sequence[str]) -> tuple[str, str]:
    """The first of folders that timm numbers in another order, and who is there here; else none.

    It sorts numbers by their value and letters without their case.
    """

    def key(name: str) -> list[Any]:
        parts = re.split(r"(\d+)", name.lower())
        return [int(part) if k % 2 else part for k, part in enumerate(parts)]

    if list(names) != sorted(names):
        return "", ""  # not numbered by their order
    pairs = zip(sorted(names, key=key), names, strict=True)
    return next(((one, other) for one, other in pairs if one != other), ("", ""))


def _numbers(pictures: Pictures, card: Card) -> tuple[int, ...]:
    """The network's number of each of the pictures' classes; empty where no name is in common.

    A name that is none of the network's stands for one that differs from it by case, spaces, `_`
    and `-` alone.

    Raises: DataError: some names are, and others are not, or stand for two classes, or for another
        name's class.
    """
    names, known = pictures.class_names, card.class_names
    same, alike = _by_word(known, str), _by_word(known, _plain)
    found = [same.get(name) or alike.get(_plain(name), []) for name in names]
    if not any(found):
        return ()
    taken: dict[int, str] = {}
    for name, numbers in zip(names, found, strict=True):
        if len(numbers) != 1:
            what = f"two classes of {card.architecture}" if numbers else ""
            what = what or f"no class of {card.architecture}{nearest(name, known)}"
            raise DataError(
                f"{pictures.source}: {name!r} names {what}; rename it, or the network's classes by "
                "--class-names"
            )
        other = taken.setdefault(numbers[0], name)
        if other != name:
            raise DataError(
                f"{pictures.source}: {other!r} and {name!r} both name {known[numbers[0]]!r} of "
                f"{card.architecture}; rename one of them, or join them"
            )
    return tuple(number for (number,) in found)


def _by_word(names: Iterable[str], word: Callable[[str], str]) -> dict[str, list[int]]:
    """The numbers of the names that come to one word, by that word."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(word(name), []).append(number)
    return found


def _plain(name: str) -> str:
    """A name without case, spaces, `_` and `-`; as it is if it is nothing else."""
    return re.sub(r"[\s_-]+", "", name).casefold() or name


def open_images(spec: str, *, preprocessing: Preprocessing, on_event: OnEvent = ignore) -> ImageSet:
    """Open the labelled images that `spec` names (one of `FORMS`).

    Class folders are numbered in alphabetical order, unless `ImageSet.labelled_by` finds their
    names among a network's. A tar beside a `manifest.jsonl`, or in the
    `shards/` of a run folder with one, is checked against it before anything is read; of a folder
    nothing that it lists may be missing.

    Args: on_event: told of `Progress` where the check takes long.

    Raises:
        DataError: `spec` is not of a legal form, nothing is there, or what is there is damaged.
    """
    scheme, _, rest = spec.partition(":")
    try:
        opener = OPENERS.get(scheme)
        pictures = opener(rest) if opener else open_path(spec, on_event=on_event)
    except OSError as error:  # not allowed, a name too long, a link to nothing
        reason = error.strerror or error
        raise DataError(f"cannot read {error.filename or spec}: {reason}") from error
    return ImageSet(pictures, preprocessing)


def batches(
    image_set: ImageSet, batch_size: int, *, workers: int | None = None
) -> Generator[tuple[Tensor, Tensor]]:
    """Yield uint8 (B, C, H, W) and int64 (B,) in order; the last batch may be smaller.

    Args:
        image_set: what to read.
        batch_size: images in a batch.
        workers: threads that decode ahead, one batch each (Pillow releases the interpreter lock
            while it decodes and resizes); None for one per CPU, at most 16.
    """
    starts = range(0, len(image_set), batch_size)
    parts = (range(start, min(start + batch_size, len(image_set))) for start in starts)
    yield from ahead(partial(_read, image_set), parts, workers=workers)


def stack(image_set: ImageSet, *, on_event: OnEvent = ignore) -> tuple[Tensor, Tensor]:
    """Read the whole set into memory: uint8 (N, C, H, W), int64 (N,).

    Args: on_event: told of `Progress` now and then.
    """
    count = len(image_set)
    images = torch.empty((count, *image_set.preprocessing.input_size), dtype=torch.uint8)
    labels, done = torch.empty(count, dtype=torch.int64), 0
    for part, truth in batches(image_set, _READ):
        images[done : done + len(part)], labels[done : done + len(part)] = part, truth
        done += len(part)
        on_event(Progress("read", done, count, "images"))
    return images, labels


def _read(image_set: ImageSet, part: range) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(image_set[index] for index in part), strict=True)
    return joined(images), torch.tensor(labels)


def check_classes(image_set: ImageSet, card: Card) -> None:
    """Refuse data whose classes are not the network's.

    Raises:
        DataError: another number of classes, or the same names in another order.
    """
    names = image_set.class_names
    count = len(names) or card.num_classes  # data that do not name them do not count them either
    if line := card.other_classes(image_set.source, count=count, names=names):
        raise DataError(line)


def check_labels(labels: Tensor, card: Card, image_set: ImageSet) -> None:
    """Refuse labels, on the CPU, that the network has no class for.

    Raises:
        DataError: a label is negative or too large.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= card.num_classes:
        raise DataError(
            f"{image_set.source} holds label {low if low < 0 else high}, but {card.architecture} "
            f"has classes 0 to {card.num_classes - 1}"
        )


OPENERS = {"torchvision": open_torchvision, "sklearn": open_sklearn}
