"""Pictures in tars: in class folders, in WebDataset layout, or the shards of our runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from dreamkd import manifest, shards
from dreamkd.ahead import all_of
from dreamkd.data.classfolders import SUFFIXES, class_folders, described, is_picture
from dreamkd.data.pictures import Entry, PictureFiles
from dreamkd.errors import DataError
from dreamkd.events import OnEvent
from dreamkd.manifest import Shard
from dreamkd.tars import Member, members

#: Largest .cls or .json beside a picture in bytes.
MAX_LABEL_BYTES = 2**20

#: What holds the label of a picture, by its ending; the first one counts.
_LABELS: dict[str, Callable[[bytes], object]] = {
    ".cls": int,
    ".json": lambda text: json.loads(text)["label"],
}


class _Tar(NamedTuple):
    """The pictures of one tar, and their labels where they lie beside them."""

    path: Path
    pictures: list[Member]
    labels: list[int] | None


def open_tars(spec: str, tars: Sequence[Path], *, whole: bool, on_event: OnEvent) -> PictureFiles:
    """Open tars, and check those that a manifest lists, several at a time.

    Args:
        spec: what named them.
        whole: it is a folder, of whose manifest nothing may be missing.
    Raises: DataError: one is damaged, or no shard of the run beside it; or they hold no pictures,
        or pictures without labels.
    """
    listed = _listed(tars, whole=whole)
    found = all_of(
        lambda tar: _scan(tar, listed.get(tar)), tars, phase="check", unit="tars", on_event=on_event
    )
    pictures = [(tar.path, picture) for tar in found for picture in tar.pictures]
    if not pictures:
        raise DataError(f"{spec} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    vouched = len(listed) == len(tars)
    checked = ", equal to the manifest" if vouched else ""
    what = f"{spec}: {len(pictures)} pictures in {len(tars)} tar{'s'[: len(tars) > 1]}"
    beside = any(tar.labels is not None for tar in found)
    if beside:
        labels = [label for tar in found for label in _require_labels(tar)]
        source, classes = f"{what}, WebDataset layout{checked}", []
    else:
        folders = class_folders(spec, pictures)
        classes = sorted(set(folders))
        rank = {name: label for label, name in enumerate(classes)}
        labels = [rank[folder] for folder in folders]
        source = f"{what}, {described(classes)}{checked}"
    entries = [
        Entry(tar, picture.offset, picture.size, label, picture.name)
        for (tar, picture), label in zip(pictures, labels, strict=True)
    ]
    # Shards of ours have their labels beside.
    synthesised = vouched and beside
    return PictureFiles(entries, source=source, class_names=classes, synthesised=synthesised)


def _listed(tars: Sequence[Path], *, whole: bool) -> dict[Path, Shard]:
    """What the manifests beside tars say of them; of those without one, nothing.

    Raises: DataError: a manifest does not list a tar beside it, or `whole` and one is missing.
    """
    manifests: dict[Path, dict[str, Shard]] = {}
    found: dict[Path, Shard] = {}
    for tar in tars:
        path = manifest.run_of(tar) / manifest.FILE
        if path not in manifests:
            if not path.is_file():
                continue
            manifests[path] = manifest.read(path)
        if tar.name not in manifests[path]:
            raise DataError(
                f"{tar} is not in {path}; if the run was interrupted, run the same command again"
            )
        found[tar] = manifests[path][tar.name]
    if whole:
        for path, known in manifests.items():
            _require_all(tars, path, known)
    return found


def _require_all(tars: Sequence[Path], path: Path, known: Mapping[str, Shard]) -> None:
    missing = sorted(known.keys() - {tar.name for tar in tars})
    if missing:
        others = f", as are {len(missing) - 1} more" if missing[1:] else ""
        raise DataError(
            f"{tars[0].with_name(missing[0])} is missing although {path} lists it{others}; the "
            "run's own command makes it again"
        )


def _scan(path: Path, shard: Shard | None) -> _Tar:
    """What lies in a tar, which is checked first where a manifest lists it."""
    if shard is not None:
        shards.verify(path, shard)
    found = list(members(path))
    pictures = [member for member in found if is_picture(member.name)]
    beside = {member.name: member for member in found if member.name.endswith((*_LABELS,))}
    if not any(_key(p.name) + end in beside for p in pictures for end in _LABELS):
        return _Tar(path, pictures, None)
    with open(path, "rb") as file:
        return _Tar(path, pictures, [_label(file, path, p, beside) for p in pictures])


def _require_labels(tar: _Tar) -> list[int]:
    """Raises: DataError: no label lies beside any of its pictures."""
    if tar.labels is None:
        return [_refuse(tar.path, picture) for picture in tar.pictures]
    return tar.labels


def _label(file: BinaryIO, path: Path, picture: Member, beside: Mapping[str, Member]) -> int:
    """Of a picture in an open tar: what its KEY.cls says, else "label" in its KEY.json."""
    label: object = None
    for end, parse in _LABELS.items():
        if member := beside.get(_key(picture.name) + end):
            if member.size > MAX_LABEL_BYTES:
                raise DataError(f"{path}: {member.name} has {member.size} bytes")
            file.seek(member.offset)
            try:
                label = parse(file.read(member.size))
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise DataError(f"{path}: {member.name} holds no integer label") from error
            break
    if not isinstance(label, int) or label < 0:
        _refuse(path, picture)
    return label


def _refuse(path: Path, picture: Member) -> NoReturn:
    key = _key(picture.name)
    raise DataError(f"{path}: {picture.name} has no integer label in {key}.cls or {key}.json")


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
