"""What a path names: an ImageFolder directory, tars, a run of ours."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dreamkd import manifest
from dreamkd.ahead import all_of
from dreamkd.data.archives import open_tars
from dreamkd.data.classfolders import described, is_hidden, is_picture
from dreamkd.data.pictures import FORMS, Entry, PictureFiles
from dreamkd.errors import DataError
from dreamkd.events import OnEvent
from dreamkd.identity import RESOLVED
from dreamkd.imagefolder import Folders
from dreamkd.manifest import Shard


def open_path(spec: str, *, on_event: OnEvent) -> PictureFiles:
    """Open a directory, a tar, a run folder or a glob of tars.

    Raises:
        DataError: nothing is there, or what is there is not labelled pictures, or class folders
            and tars, or a run of which a shard is lost; or a glob names a folder.
    """
    path = Path(spec)
    if path.is_dir():
        for run in (manifest.run_of(path), path):
            if (run / manifest.IMAGES).is_dir() and (run / manifest.RECORDS).is_dir():
                return _open_run_of_folders(run, on_event)
        shards_of_run = path / manifest.SHARDS
        inside = shards_of_run if shards_of_run.is_dir() else path
        tars = sorted(inside.glob("*.tar"))
        if inside is not path and not tars:
            raise DataError(f"{inside} holds no shards yet; run the command that makes them again")
        if not tars and (path / RESOLVED).is_file():
            raise DataError(f"{path} is a run that made no images; give the data that it was given")
        if not tars:
            return _open_image_folder(path)
        if inside is path:
            _require_no_class_folders(path, tars)
        return open_tars(spec, tars, whole=True, on_event=on_event)
    tars = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(spec))]
    if not tars:
        raise DataError(f"no data at {spec}; legal are {'; '.join(FORMS)}")
    _require_files(spec, tars)
    return open_tars(spec, tars, whole=False, on_event=on_event)


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


def _open_run_of_folders(run: Path, on_event: OnEvent) -> PictureFiles:
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
    for record in sorted(files.records.glob("[!.]*")):
        if record.name not in listed:
            raise DataError(
                f"{record} is not in {path}; if the run was interrupted, run the same command again"
            )

    def entries_of(batch: tuple[int, Shard]) -> list[Entry]:
        files.verify(*batch)
        pictures = files.pictures(batch[0])
        return [Entry(p.path, 0, p.path.stat().st_size, p.label, "") for p in pictures]

    batches = manifest.numbered(listed, files.names)
    found = all_of(entries_of, batches, phase="check", unit="batches", on_event=on_event)
    entries = [entry for batch in found for entry in batch]
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
        found += [Path(parent, name) for name in names if is_picture(name)]
    return sorted(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
