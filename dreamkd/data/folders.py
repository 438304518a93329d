"""Pictures on disk: ImageFolder directories, tars of class folders, WebDataset tars, our runs."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dreamkd import manifest, shards
from dreamkd.data.classfolders import class_folders, described, is_hidden, parts
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
        DataError: nothing is there, or what is there is not labelled pictures, or class folders
            and tars, or a run of which a shard is lost; or a glob names a folder.
    """
    path = Path(spec)
    if path.is_dir():
        for run in (manifest.run_of(path), path):
            if (run / manifest.IMAGES).is_dir() and (run / manifest.RECORDS).is_dir():
                return _open_run_of_folders(run)
        shards_of_run = path / manifest.SHARDS
        inside = shards_of_run if shards_of_run.is_dir() else path
        tars = sorted(inside.glob("*.tar"))
        if inside is not path and not tars:
            raise DataError(f"{inside} holds no shards yet; run the command that makes them again")
        if not tars:
            return _open_image_folder(path)
        if inside is path:
            _require_no_class_folders(path, tars)
        return _open_tars(spec, tars, whole=True)
    tars = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(spec))]
    if not tars:
        raise DataError(f"no data at {spec}; legal are {'; '.join(FORMS)}")
    _require_files(spec, tars)
    return _open_tars(spec, tars, whole=False)


def _require_files(spec: str, found: Sequence[Path]) -> None:
    """Raises: DataError: a glob names something else than tars, such as the folders of runs."""
    for path in found:
        if (path / manifest.SHARDS).is_dir():
            tars = f"{spec.rstrip('/')}/{manifest.SHARDS}/*.tar"
            raise DataError(f"{spec} names runs; write '{tars}'")
        if path.exists() and not path.is_file():
            raise DataError(f"{spec} names {path}, which is no tar; name one folder, or tars alone")


def _require_no_class_folders(root: Path, tars: Sequence[Path]) -> None:
    """Refuse a folder of which either the tars or the class folders would go unread.

    Raises: DataError: pictures lie in folders beside the tars.
    """
    for name in _folder_names(root):
        if _picture_files(root / name):
            raise DataError(
                f"{root} holds a tar ({tars[0].name}) and class folders ({name}); to read the tar, "
                f"name {tars[0]} or a glob; to read the class folders, move the tar elsewhere"
            )


def _open_image_folder(root: Path) -> PictureFiles:
    classes = _folder_names(root)
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
    source = f"{root}: {len(entries)} pictures in {described(classes)}"
    return PictureFiles(entries, source=source, class_names=classes)


def _open_run_of_folders(run: Path) -> PictureFiles:
    """The images of `dreamkd invert --format folder`, with the labels of their records.

    A run of some of a network's classes has folders of these alone, so that their alphabetical
    order does not say the label.

    Raises:
        DataError: an image is not as the manifest says, or is none of the run's.
    """
    files, path = Folders(run), run / manifest.FILE
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


def _folder_names(root: Path) -> list[str]:
    return sorted(f.name for f in root.iterdir() if f.is_dir() and not is_hidden(f.name))


def _picture_files(folder: Path) -> list[Path]:
    """Pictures below a folder, sorted; what is hidden holds none.

    Links are followed, but no folder is entered twice, and none that `folder` lies in.
    """
    entered = {_identity(above) for above in folder.absolute().parents}
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        if _identity(parent) in entered:
            folders.clear()
            continue
        entered.add(_identity(parent))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(parent, name) for name in names if _is_picture(name)]
    return sorted(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _open_tars(spec: str, tars: Sequence[Path], *, whole: bool) -> PictureFiles:
    """Args: whole: `spec` is a folder, of whose manifest nothing may be missing."""
    synthesised = _check_manifests(tars, whole=whole)
    checked = ", equal to the manifest" if synthesised else ""
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
        return PictureFiles(entries, source=source, class_names=(), synthesised=synthesised)
    folders = class_folders(spec, pictures)
    classes = sorted(set(folders))
    rank = {name: label for label, name in enumerate(classes)}
    entries = [
        Entry(tar, member.offset, member.size, rank[folder], member.name)
        for (tar, member), folder in zip(pictures, folders, strict=True)
    ]
    source = f"{what}, {described(classes)}{checked}"
    return PictureFiles(entries, source=source, class_names=classes)


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


def _check_manifests(tars: Sequence[Path], *, whole: bool) -> bool:
    """Check tars against the manifests of their run folders, and say whether all have one.

    Raises:
        DataError: a tar is not the one that its manifest lists, or `whole` and one is missing.
    """
    manifests: dict[Path, dict[str, manifest.Shard]] = {}
    beside = [(tar, manifest.run_of(tar) / manifest.FILE) for tar in tars]
    listed = [(tar, path) for tar, path in beside if path.is_file()]
    for tar, path in listed:
        if path not in manifests:
            manifests[path] = manifest.read(path)
        if tar.name not in manifests[path]:
            raise DataError(
                f"{tar} is not in {path}; if the run was interrupted, run the same command again"
            )
    if whole:
        for path, known in manifests.items():
            _require_all(tars, path, known)
    for tar, path in listed:
        shards.verify(tar, manifests[path][tar.name])
    return len(listed) == len(tars)


def _require_all(tars: Sequence[Path], path: Path, known: Mapping[str, manifest.Shard]) -> None:
    missing = sorted(known.keys() - {tar.name for tar in tars})
    if missing:
        others = f", as are {len(missing) - 1} more" if missing[1:] else ""
        raise DataError(
            f"{tars[0].with_name(missing[0])} is missing although {path} lists it{others}; the "
            "run's own command makes it again"
        )


def _is_picture(name: str) -> bool:
    ending = name.rpartition("/")[2].rpartition(".")[2].lower()
    return ending in SUFFIXES and not any(map(is_hidden, parts(name)))


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


_LABELS: dict[str, Callable[[bytes], object]] = {
    ".cls": int,
    ".json": lambda text: json.loads(text)["label"],
}
