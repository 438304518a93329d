"""The manifest: whole lines only, and nothing in it taken for granted."""

import fcntl
import json
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from dreamkd import manifest
from dreamkd.errors import DataError, RunError

SHARD = manifest.Shard("shard-000000.tar", 2, "0" * 64, "1" * 64)
LINE = SHARD.to_json() | {"batch": 0, "start": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.jsonl"


def test_a_torn_line_counts_as_not_written_and_is_overwritten(path: Path) -> None:
    manifest.append(path, LINE)
    manifest.append(path, LINE | {"shard": "shard-000001.tar", "batch": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert manifest.read_lines(path) == [LINE]
    manifest.append(path, LINE | {"shard": "shard-000001.tar", "batch": 1})
    assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [0, 1, 4095, 4096, 4097, 9000])
def test_a_torn_end_of_any_length_is_overwritten(path: Path, torn: int) -> None:
    for before in (b"", (json.dumps(LINE) + "\n").encode()):
        path.write_bytes(before + b"x" * torn)
        manifest.append(path, LINE)
        assert path.read_bytes() == before + (json.dumps(LINE, sort_keys=True) + "\n").encode()


def test_several_may_append_since_each_has_the_file_to_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    flock = fcntl.flock

    def locked(file: BinaryIO, kind: int) -> None:
        asked.append((kind, path.stat().st_size))
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", locked)
    manifest.append(path, LINE)
    size = path.stat().st_size
    manifest.append(path, LINE)
    assert asked == [(fcntl.LOCK_EX, 0), (fcntl.LOCK_EX, size)]


def test_a_line_that_is_no_json_is_not_written(path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        manifest.append(path, LINE | {"r_feature": math.nan})
    assert not path.exists()


def test_batches_are_known_by_their_numbers_and_come_in_their_order() -> None:
    names = re.compile(r"shard-([0-9]+)\.tar")
    listed = {f"shard-{k:06d}.tar": SHARD for k in (10, 2, 1_000_000)}
    assert manifest.numbered(listed, names) == [(2, SHARD), (10, SHARD), (1_000_000, SHARD)]
    with pytest.raises(DataError, match=r"lists 'other\.tar' beside the batches of a run"):
        manifest.numbered(listed | {"other.tar": SHARD}, names)


def test_a_run_is_known_by_what_it_holds_and_may_be_called_like_it(tmp_path: Path) -> None:
    run = tmp_path / "images"
    tar = run / "shards" / "shard-000000.tar"
    tar.parent.mkdir(parents=True)
    tar.write_bytes(b"")
    (run / "resolved.json").write_text("{}")
    assert [manifest.run_of(path) for path in (run, tar.parent, tar)] == [run] * 3
    (run / "resolved.json").unlink()
    assert [manifest.run_of(path) for path in (run, tar.parent)] == [tmp_path, run]


def test_the_last_line_about_a_shard_counts(path: Path) -> None:
    manifest.append(path, LINE | {"sha256": "2" * 64})
    manifest.append(path, LINE)
    assert manifest.read(path) == {SHARD.name: SHARD}


@pytest.mark.parametrize(
    "change",
    [
        {"shard": None},
        {"count": 2.0},
        {"count": True},
        {"count": -1},
        {"count": 2**48},
        {"batch": "0"},
        {"start": None},
        {"sha256": "0" * 63},
        {"sha256": "G" * 64},
        {"pixels_sha256": 0},
    ],
)
def test_a_line_that_describes_no_shard_is_refused(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, **change}) + "\n")
    with pytest.raises(DataError, match=r"manifest\.jsonl: line 2 does not describe a shard"):
        manifest.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\udcff"])
def test_what_is_no_line_at_all_is_refused(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(DataError, match="line 1 does not describe a shard"):
        manifest.read(path)


def test_a_manifest_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        manifest.read(tmp_path)
    with pytest.raises(RunError, match="cannot write"):
        manifest.append(tmp_path / "missing" / "manifest.jsonl", LINE)
