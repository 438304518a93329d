"""Where a run lies: its folder, made or found, and held by one process at a time."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dreamkd import manifest
from dreamkd.errors import InUseError, RunError, said
from dreamkd.files import exists, lock, read_json, remove_torn
from dreamkd.identity import RESOLVED, as_json, is_path
from dreamkd.runs import Run

#: Letters of the model in the name of a default folder, at most: a file system takes 255 in all.
_STEM = 100

#: The file that is locked while a process holds a run, and that names it.
LOCK = ".lock"

#: The file that each of those who help the leader locks, together with the others.
_HELPERS = ".workers"

#: What a run writes into its folder; anything else that lies there is left alone.
_OURS = (
    *(manifest.FILE, "result.json", "events.jsonl", "progress.json", "seconds.json", "env.json"),
    *(manifest.SHARDS, manifest.IMAGES, manifest.RECORDS, "labels", "contact-sheet.png"),
    *("student.safetensors", "state-*.safetensors"),
)


@contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    """Create or open a run folder and hold its lock while the block lasts.

    The lock is the kernel's: it ends with the process that holds it, however that dies.

    A new folder that did not become a run within the block is removed again, and those around it
    that were made for it.

    Raises:
        RunError: the folder cannot be made or written, or is no run.
        InUseError: another process holds it.
    """
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        new = bool(made)
        if new and folder.is_symlink():
            raise RunError(
                f"--out {folder}: is a link to {os.readlink(folder)}, which is not there"
            )
        if not new:
            _refuse_foreign(folder)
        handle = _locked(folder)
    except OSError as error:
        raise RunError(f"--out {folder}: cannot be written ({said(error)})") from error
    except InUseError:
        raise  # the folder is another's
    except RunError:
        _withdraw(folder, made)
        raise
    try:
        _require_no_helpers(folder)
        remove_torn(folder)
        with suppress(OSError):  # a full disk: it only tells who holds the lock
            os.truncate(handle, 0)
            since = datetime.now().isoformat(" ", "milliseconds")
            line = f"{os.getpid()} on {platform.node()} since {since}\n"
            os.pwrite(handle, line.encode(), 0)
            os.fsync(handle)  # workers on other machines look for it
        yield Run(folder)
    finally:
        _withdraw(folder, made)
        os.close(handle)


def holder(folder: Path) -> str:
    """Who holds the lock of a run, as its file says it; empty if it does not."""
    with suppress(OSError):
        return (folder / LOCK).read_text(encoding="utf-8", errors="replace")
    return ""


@contextmanager
def join_run(folder: Path, *, leader: str) -> Iterator[Run]:
    """Open the run that the leader holds, to work in it beside it while the block lasts.

    Meanwhile nobody begins in the folder, also when the leader is gone.

    Args: leader: what the leader found `holder` to be.
    Raises: RunError: this is not the folder that the leader has, or cannot be written.
    """
    other = RunError(f"{folder} is not the leader's run here; all workers need the same folder")
    try:
        handle = os.open(folder / _HELPERS, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        raise other from None
    except OSError as error:
        raise RunError(f"{folder} cannot be written by a worker ({said(error)})") from error
    try:
        lock(handle, folder, shared=True)
        if not leader or holder(folder) != leader:  # now that no other leader can begin
            raise other
        yield Run(folder)
    finally:
        os.close(handle)


def _require_no_helpers(folder: Path) -> None:
    """Raises: InUseError: a process that helped an earlier leader has not ended."""
    try:
        handle = os.open(folder / _HELPERS, os.O_RDWR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{folder / _HELPERS}: cannot be opened ({said(error)})") from error
    try:
        lock(handle, folder)
    except InUseError:
        raise InUseError(
            f"{folder} is in use by a worker of an earlier start; wait for it, or end it"
        ) from None
    finally:
        os.close(handle)


def _withdraw(folder: Path, made: Sequence[Path]) -> None:
    """Leave nothing behind of what was made for a run, inmost first, and did not become one."""
    if made and not (folder / RESOLVED).exists():
        with suppress(OSError):
            (folder / _HELPERS).unlink(missing_ok=True)
            (folder / LOCK).unlink()
            for place in made:
                place.rmdir()


def _locked(folder: Path) -> int:
    """Make the folder, if there is none, and lock it: a handle that holds the lock until closed.

    Raises: RunError: as of `lock`; OSError: it cannot be made.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # another has removed the folder between
        try:
            lock(handle, folder)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(folder / LOCK)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it has removed it with the folder meanwhile


def _refuse_foreign(folder: Path) -> None:
    """Logs may lie in the folder, but no other folder, and nothing that a run would replace.

    Raises: RunError: something does, and no run of ours.
    """
    if (folder / RESOLVED).exists():
        return
    found = [
        path.name
        for path in folder.iterdir()
        if path.is_dir() or any(path.match(name) for name in _OURS)
    ]
    if found:
        raise RunError(
            f"--out {folder} is not empty and holds no run ({found[0]}); choose another folder"
        )


def default_folder(command: str, model: str, identity: Mapping[str, Any]) -> Path:
    """`runs/COMMAND-MODEL-N`: the unfinished run of the same command if there is one, else new.

    What a killed process left before it was a run is as new.

    Args: identity: what it then has in `resolved.json`: the settings as they are `requested`, the
        networks, since several may go by one name.
    Raises: RunError: what lies in `runs` cannot be seen.
    """
    stem = Path(model).stem if is_path(model) else model
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem)[:_STEM]
    wanted, number, free = as_json(identity), 1, None
    while exists(folder := Path("runs") / f"{command}-{stem}-{number}", option="--out"):
        resolved = read_json(folder / RESOLVED)
        same = resolved is not None and wanted.items() <= resolved.items()
        if same and not (folder / "result.json").exists():
            return folder
        if free is None and _is_abandoned(folder):
            free = folder
        number += 1
    return free or folder


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder holds nothing but the locks of processes that are gone."""
    try:
        names = {path.name for path in folder.iterdir() if not path.match(".*.part")}
        if names - {LOCK, _HELPERS}:
            return False
        for name in names:
            handle = os.open(folder / name, os.O_RDWR)
            try:
                lock(handle, folder)
            finally:
                os.close(handle)
    except (OSError, RunError):
        return False
    return True
