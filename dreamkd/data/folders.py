"""Pictures on disk: ImageFolder directories, tars of class folders, WebDataset tars, our runs."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dreamkd import manifest, shards
from dreamkd.data.pictures import FORMS, Entry, PictureFiles, read
from dreamkd.errors import DataError
from dreamkd.imagefolder import Folders
from dreamkd.tars import Member, members

#: Endings that make a file a picture, lower case.
SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff"])

#: Largest .cls or .json beside a picture in bytes.
MAX_LABEL_BYTES = 2**20


def open_path(spec: str) -> PictureFiles:
    """Open a directory, a tar, a run folder or a glob of tars.

    Raises:
        DataError: nothing is there, or what is there is not labelled pictures.
    """
    path = Path(spec)
    if path.is_dir():
        run = path.parent if path.name == "images" else path
        if (run / "images").is_dir() and (run / "records").is_dir():
            return _open_run_of_folders(run)
        # `dreamkd invert` puts its tars into shards/ of the run folder
        inside = path / "shards" if (path / "shards").is_dir() else path
        tars = sorted(inside.glob("*.tar"))
        if inside is not path and not tars:
            raise DataError(f"{inside} holds no shards yet; run the command that makes them again")
        return _open_tars(spec, tars) if tars else _open_image_folder(path)
    tars = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(spec))]
    if not tars:
        raise DataError(f"no data at {spec}; legal are {'; '.join(FORMS)}")
    return _open_tars(spec, tars)


def _open_image_folder(root: Path) -> PictureFiles:
    classes = sorted(
        folder.name for folder in root.iterdir() if folder.is_dir() and folder.name[0] != "."
    )
    if not classes:
        raise DataError(
            f"{root} holds neither class folders nor tars; legal are {'; '.join(FORMS)}"
        )
    entries = []
    for label, name in enumerate(classes):
        found = _picture_files(root / name)
        if not found:  # skipping the folder would shift the labels of all later ones
            raise DataError(f"class folder {root / name} holds no pictures; remove or fill it")
        entries += [Entry(path, 0, path.stat().st_size, label, "") for path in found]
    source = f"{root}: {len(entries)} pictures in {_class_folders(classes)}"
    return PictureFiles(entries, source=source, class_names=classes)


def _open_run_of_folders(run: Path) -> PictureFiles:
    """The images of `dreamkd invert --format folder`, with the labels of their records.

    A run of some of a network's classes has folders of these alone, so that their alphabetical
    order does not say the label.

    Raises:
        DataError: an image is not as the manifest says, or is none of the run's.
    """
    files, path = Folders(run), run / "manifest.jsonl"
    listed = manifest.read(path) if path.is_file() else {}
    if not listed:
        raise DataError(f"{run} holds no images yet; run the command that makes them again")
    for found in sorted(files.records.glob("[!.]*")):
        if found.name not in listed:
            raise DataError(
                f"{found} is not in {path}; if the run was interrupted, run the same command again"
            )
    entries = []
    for k, shard in manifest.numbered(listed, files.names):
        files.verify(k, shard)
        entries += [Entry(p.path, 0, p.path.stat().st_size, p.label, "") for p in files.pictures(k)]
    foreign = set(_picture_files(files.images)) - {entry.path for entry in entries}
    if foreign:
        raise DataError(f"{min(foreign)} is no image of the run in {run}; remove it")
    source = f"{run}: {len(entries)} pictures of a run, equal to the manifest"
    return PictureFiles(entries, source=source, class_names=(), synthesised=True)


def _picture_files(folder: Path) -> list[Path]:
    """Pictures below a folder, sorted; links are followed, hidden files are not pictures."""
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [Path(parent, name) for name in names if _is_picture(name)]
    return sorted(found)


def _open_tars(spec: str, tars: Sequence[Path]) -> PictureFiles:
    checked = _check_manifests(tars)
    found = [(tar, member) for tar in tars for member in members(tar)]
    pictures = [(tar, member) for tar, member in found if _is_picture(member.name)]
    if not pictures:
        raise DataError(f"{spec} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    beside = {
        (tar, member.name): member
        for tar, member in found
        if member.name.endswith((".cls", ".json"))
    }
    what = f"{spec}: {len(pictures)} pictures in {len(tars)} tar{'s'[: len(tars) > 1]}"
    if any((tar, _key(member.name) + end) in beside for tar, member in pictures for end in _LABELS):
        entries = [_labelled(tar, member, beside) for tar, member in pictures]
        source = f"{what}, WebDataset layout{checked}"
        return PictureFiles(entries, source=source, class_names=(), synthesised=bool(checked))
    folders = [PurePosixPath(member.name).parent.name for _, member in pictures]
    if "" in folders:
        nameless = pictures[folders.index("")][1].name
        raise DataError(f"{spec}: {nameless!r} has neither a class folder nor a .cls beside it")
    classes = sorted(set(folders))
    rank = {name: label for label, name in enumerate(classes)}
    entries = [
        Entry(tar, member.offset, member.size, rank[folder], member.name)
        for (tar, member), folder in zip(pictures, folders, strict=True)
    ]
    source = f"{what}, {_class_folders(classes)}{checked}"
    return PictureFiles(entries, source=source, class_names=classes)


def _class_folders(classes: Sequence[str]) -> str:
    """How many, and where their names are numbers that are not in their own order: in which."""
    count = f"{len(classes)} class folders"
    numbered = all(name.isdecimal() for name in classes)
    if not numbered or list(classes) == sorted(classes, key=int):
        return count
    return f"{count}, labelled in the order {', '.join(classes[:4])}, ..."


def _labelled(tar: Path, picture: Member, beside: Mapping[tuple[Path, str], Member]) -> Entry:
    """A WebDataset picture with the label of its KEY.cls, else of "label" in its KEY.json."""
    key = _key(picture.name)
    label: object = None
    for end, parse in _LABELS.items():
        if member := beside.get((tar, key + end)):
            if member.size > MAX_LABEL_BYTES:
                raise DataError(f"{tar}: {member.name} has {member.size} bytes")
            try:
                label = parse(read(Entry(tar, member.offset, member.size, 0, member.name)))
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise DataError(f"{tar}: {member.name} holds no integer label") from error
            break
    if not isinstance(label, int) or label < 0:
        raise DataError(f"{tar}: {picture.name} has no integer label in {key}.cls or {key}.json")
    return Entry(tar, picture.offset, picture.size, label, picture.name)


def _check_manifests(tars: Sequence[Path]) -> str:
    """Check tars against the manifest of their run folder, where there is one.

    Raises:
        DataError: a tar is not the one that the manifest lists.
    """
    manifests: dict[Path, dict[str, manifest.Shard]] = {}
    for tar in tars:
        run = tar.parent.parent if tar.parent.name == "shards" else tar.parent
        path = run / "manifest.jsonl"
        if not path.is_file():
            continue
        if path not in manifests:
            manifests[path] = manifest.read(path)
        if tar.name not in manifests[path]:
            raise DataError(
                f"{tar} is not in {path}; if the run was interrupted, run the same command again"
            )
        shards.verify(tar, manifests[path][tar.name])
    return ", equal to the manifest" if manifests else ""


def _is_picture(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base[:1] != "." and base.rpartition(".")[2].lower() in SUFFIXES


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


_LABELS: dict[str, Callable[[bytes], object]] = {
    ".cls": int,
    ".json": lambda text: json.loads(text)["label"],
}
