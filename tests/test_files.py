"""Durable files, and room for them."""

import errno
from pathlib import Path

import pytest

from dreamkd import files
from dreamkd.errors import RunError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1_600_000, "1.526 MiB"),
        (3 * 2**30, "3 GiB"),
        (2**60, "1 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert files.size(count) == text


def test_room_is_stated_or_missed_before_the_work(tmp_path: Path) -> None:
    assert files.require_room(tmp_path, 2**20).startswith("up to 1 MiB to write, ")
    with pytest.raises(RunError, match=r"up to 1 EiB will be written and .* free; make room"):
        files.require_room(tmp_path, 2**60)


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
