"""Names: what is a picture and what is hidden, and which class folder it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from dreamkd.errors import DataError
from dreamkd.tars import Member

#: Endings that make a file a picture, lower case.
SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff"])


def is_picture(name: str) -> bool:
    """Whether the path of a file says that it is a picture of a data set."""
    ending = name.rpartition("/")[2].rpartition(".")[2].lower()
    return ending in SUFFIXES and not any(map(is_hidden, parts(name)))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a data set."""
    return (name[:1] == "." and name != "..") or name == "__MACOSX"


def parts(name: str) -> tuple[str, ...]:
    """The folders and the file that a member's name consists of."""
    return tuple(part for part in name.split("/") if part not in ("", "."))


def described(classes: Sequence[str]) -> str:
    """How many, and where their names are numbers that are not in their own order: in which."""
    count = f"{len(classes)} class folders"
    numbered = all(name.isdecimal() for name in classes)
    if not numbered or list(classes) == sorted(classes, key=int):
        return count
    return f"{count}, labelled in the order {', '.join(classes[:4])}, ..."


def class_folders(spec: str, pictures: Sequence[tuple[Path, Member]]) -> list[str]:
    """The class folder of every picture, as if all tars were unpacked into one folder.

    Leading folders that all pictures share are passed over, and the first one after them is the
    class, whatever lies between it and the picture. But a folder that holds a picture itself holds
    no class folders: where all pictures lie in one folder, it is the class. One class alone, all
    of whose pictures lie in folders below it, cannot be told from a folder of classes, and is
    taken for that.

    Raises:
        DataError: a picture lies in no folder, or several tars begin each with a folder of its own
            that may be a class or hold the classes.
    """
    folders = [parts(member.name)[:-1] for _, member in pictures]
    shortest = min(map(len, folders))
    if not shortest:
        nameless = pictures[folders.index(())][1].name
        raise DataError(f"{spec}: {nameless!r} has neither a class folder nor a .cls beside it")
    pairs = zip(min(folders), max(folders), strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if not shared and shortest > 1:
        _require_one_root(spec, [tar for tar, _ in pictures], folders)
    depth = min(shared, shortest - 1)
    return [folder[depth] for folder in folders]


def _require_one_root(spec: str, tars: Sequence[Path], folders: Sequence[tuple[str, ...]]) -> None:
    """Refuse a/0/x.png, a/1/x.png in one tar and b/0/x.png in another: 0 and 1, or a and b?

    Raises: DataError: every tar has one leading folder, and a picture lies in none of them itself.
    """
    found: dict[Path, set[str]] = {}
    for tar, folder in zip(tars, folders, strict=True):
        found.setdefault(tar, set()).add(folder[0])
    if len(found) > 1 and all(len(leading) == 1 for leading in found.values()):
        first, second = sorted(set().union(*found.values()))[:2]
        raise DataError(
            f"{spec}: every tar has one leading folder ({first!r}, {second!r}, ...), which may be "
            f"a class, or hold class folders such as {folders[0][1]!r}; pack them from inside the "
            "folder of all class folders, or with its name in front"
        )
