"""Durable files: a reader sees the old content or the new one, never a torn one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreamkd.errors import DataError, InUseError, RunError, said


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: temporary name, fsync, rename, fsync of the folder.

    Raises:
        RunError: the disk is full, the folder is read-only or missing, or a size limit was hit;
            the old content of `path` is untouched.
    """
    write_all({path: data})


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files, each as `write_atomically` does; a folder of many is synced once.

    Raises:
        RunError: as there; some files may be new already, none is torn.
    """
    path, parts = Path(), {}
    try:
        for path, data in files.items():
            parts[path] = part_of(path)
            with open(parts[path], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            os.replace(part, path)
        for path in {path.parent for path in parts}:
            sync_folder(path)
    except OSError as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
        if not os.path.isdir(path.parent):  # Path.is_dir() raises where it cannot look
            raise RunError(f"cannot write {path}: {path.parent} is no folder") from error
        raise RunError(
            f"cannot write {path}: {said(error)}; free some room or choose another "
            "place, then run the same command again"
        ) from error


def part_of(path: Path) -> Path:
    """The temporary name of a file that becomes `path`; `remove_torn` knows it."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def lock(handle: int, folder: Path, *, shared: bool = False) -> None:
    """Lock an open file of `folder` until it is closed, by whatever end of the process.

    Args: shared: with others who lock it so.

    Raises:
        InUseError: another process holds the lock.
        RunError: the file system has none.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 256, 0).decode(errors="replace").strip()
        raise InUseError(
            f"{folder} is in use by process {holder or 'unknown'}; wait for it, or choose another "
            "--out"
        ) from None
    except OSError as error:
        raise RunError(
            f"--out {folder}: its file system locks no files ({said(error)}); choose a folder "
            "on another one"
        ) from None


def remove_torn(folder: Path) -> None:
    """Remove what a killed process had not finished writing.

    Raises: RunError: as of `remove`.
    """
    for place in ("", "*/", "images/*/"):
        for part in folder.glob(f"{place}.*.[0-9]*.part"):
            remove(part)


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises: RunError: its folder is read-only.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot remove {path}: {said(error)}; make its folder writable or choose another --out"
        ) from error


def exists(path: Path, *, option: str) -> bool:
    """Whether there is a file or folder; what `Path.exists` says of others depends on Python.

    Args: option: with which another place is chosen.

    Raises: RunError: it cannot be found out: the name is too long, or a folder not searchable.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RunError(
            f"{path}: cannot be looked for ({said(error)}); choose another {option}"
        ) from error
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file of a run holds; None if there is no file.

    Raises: RunError: it holds none, or cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}); choose another --out") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: is not a run's; choose another --out")
    return value


def require_room(folder: Path, needed: int) -> str:
    """Check that `needed` bytes fit on the disk of `folder`; say so in words.

    Raises: RunError: they do not, which is better known before the work than after.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"--out {folder}: up to {size(needed)} will be written and {size(free)} are free; make "
            "room or choose another --out"
        )
    return f"up to {size(needed)} to write, {size(free)} free"


def size(count: int) -> str:
    """A number of bytes, as a person reads it: `1.5 MiB`."""
    power = max(0, (count.bit_length() - 1) // 10)
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")[power]
    return f"{count / 1024**power:.4g} {unit}"


def make_folders(*folders: Path) -> None:
    """Make folders inside existing ones, durably; those that are there stay as they are.

    Raises:
        RunError: one cannot be made.
    """
    try:
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for parent in {folder.parent for folder in folders}:
            sync_folder(parent)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {said(error)}") from error


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces.

    Raises: DataError: there is no such file; or it cannot be read, as `withheld` tells.
    """
    if not is_file(path):
        raise DataError(f"{path} is missing although the manifest lists it")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {said(error)}") from error


def is_file(path: Path) -> bool:
    """Whether there is a regular file; what `Path.is_file` says of others depends on Python.

    Raises: DataError: it cannot be found out, as `withheld` tells.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataError(f"cannot read {path}: {said(error)}") from error


def withheld(error: Exception) -> bool:
    """Whether a file is not given by the system: what it holds may be whole, and is no damage."""
    return isinstance(error.__cause__, OSError) and not isinstance(
        error.__cause__, FileNotFoundError | NotADirectoryError
    )
