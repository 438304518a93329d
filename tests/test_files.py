"""Durable files, and room for them."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from dreamkd import files, manifest
from dreamkd.errors import RunError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (2**20 - 1, "1024 KiB"),
        (1_600_000, "1.526 MiB"),
        (3 * 2**30, "3 GiB"),
        (2**40, "1 TiB"),
        (2**60, "1 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert files.size(count) == text


def test_room_is_stated_or_missed_before_the_work(tmp_path: Path) -> None:
    assert files.require_room(tmp_path, 2**20).startswith("up to 1 MiB to write, ")
    with pytest.raises(RunError, match=r"up to 1 EiB will be written and .* free; make room"):
        files.require_room(tmp_path, 2**60)


@pytest.mark.parametrize("free", [0, 1023, 1024, 2**40])
def test_what_fits_to_the_byte_fits(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    size = files.size(free)
    assert files.require_room(tmp_path, free) == f"up to {size} to write, {size} free"
    with pytest.raises(RunError, match=f"and {size} are free; make room"):
        files.require_room(tmp_path, free + 1)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the disk, in order: files and `tmp_path` synced, and new names."""
    asked: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        folder = os.path.samestat(os.fstat(handle), tmp_path.stat())
        asked.append("the folder" if folder else f"{os.fstat(handle).st_size} bytes")
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        asked.append(new.name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return asked


def test_bytes_are_durable_before_their_name_and_the_name_before_the_end(
    tmp_path: Path, disk: list[str]
) -> None:
    files.write_all({tmp_path / "a": b"1", tmp_path / "b": b"22"})
    assert disk == ["1 bytes", "2 bytes", "a", "b", "the folder"]
    disk.clear()
    files.write_atomically(tmp_path / "c", b"333")
    assert disk == ["3 bytes", "c", "the folder"]


def test_new_folders_and_lines_of_the_manifest_are_durable(tmp_path: Path, disk: list[str]) -> None:
    files.make_folders(tmp_path / "new", tmp_path / "newer")
    assert disk == ["the folder"]
    manifest.append(tmp_path / "lines", {})
    assert disk == ["the folder", "3 bytes", "the folder"]


def test_what_cannot_be_renamed_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=r"^cannot write .*/a: Permission denied; free some room"):
        files.write_all({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_whose_name_is_too_long_is_one_line() -> None:
    path = Path("n" * 300) / "file"
    with pytest.raises(RunError, match=r"^cannot write n+/file: n+ is no folder$"):
        files.write_atomically(path, b"")
    with pytest.raises(RunError, match=r"^n+/file: cannot be looked for \(File name too long\);"):
        files.exists(path, option="--save")


def test_a_file_exists_or_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    names = ("", "file", "link", "other", "file/inside")
    found = [files.exists(tmp_path / name, option="--save") for name in names]
    assert found == [True, True, False, False, False]


def test_a_file_is_removed_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        files.remove(tmp_path / "file")
    assert not [*tmp_path.iterdir()]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for place in ("", "images", "images/cat"):
        for name in (".result.json.7.part", ".thesis.part", "movie.7.part"):
            (tmp_path / place / name).write_text("")
    files.remove_torn(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.part"))
    names = (".thesis.part", "movie.7.part")
    assert left == sorted(
        f"{place}{name}" for place in ("", "images/", "images/cat/") for name in names
    )


def test_what_a_killed_process_left_in_a_read_only_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / ".result.json.7.part").write_text("")
    monkeypatch.setattr(Path, "unlink", refuse)
    line = rf"^cannot remove {tmp_path}/\.result\.json\.7\.part: Permission denied; make its folder"
    with pytest.raises(RunError, match=line):
        files.remove_torn(tmp_path)
