"""A run's images read back, whatever their format."""

import json
from pathlib import Path

import pytest
import torch

from dreamkd.errors import DataError
from dreamkd.formats import FORMATS, read_run

IMAGES = torch.arange(4 * 48, dtype=torch.uint8).view(4, 3, 4, 4)
LABELS = [1, 0, 1, 1]
RECORDS = [{"key": f"{i:08d}", "class_name": "b"} for i in range(4)]


def write_run(folder: Path, name: str) -> Path:
    """Two batches of two, the second written and listed first."""
    files = FORMATS[name](folder, ["a", "b"])
    files.prepare()
    with open(folder / "manifest.jsonl", "w") as manifest:
        for k in (1, 0):
            part = slice(2 * k, 2 * k + 2)
            shard = files.write(k, IMAGES[part], LABELS[part], RECORDS[part])
            manifest.write(json.dumps({"batch": k, **shard.to_json()}) + "\n")
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_is_read_in_order(tmp_path: Path, name: str) -> None:
    images, labels, records = zip(*read_run(write_run(tmp_path, name)), strict=True)
    assert torch.equal(torch.stack(images), IMAGES)
    assert list(labels) == LABELS
    assert list(records) == [
        {**record, "label": label} for record, label in zip(RECORDS, LABELS, strict=True)
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_of_a_damaged_batch_is_read(tmp_path: Path, name: str) -> None:
    files = FORMATS[name](write_run(tmp_path, name), ["a", "b"])
    path = files.path(1)
    path.write_bytes(path.read_bytes().replace(b"class_name", b"class_game"))
    found = read_run(str(tmp_path))
    assert [next(found)[1], next(found)[1]] == LABELS[:2]
    with pytest.raises(DataError, match=path.name):
        next(found)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*manifest\.jsonl"):
        next(read_run(tmp_path))
    (tmp_path / "resolved.json").write_text("{}")
    with pytest.raises(
        DataError, match="holds no images: no batch is finished yet, or its student"
    ):
        next(read_run(tmp_path))
    write_run(tmp_path, "folder")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("batch-000000", "../../batch-000000"))
    with pytest.raises(DataError, match=r"lists '\.\./\.\./batch-000000\.jsonl'"):
        next(read_run(tmp_path))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("k", [0, 999_999, 1_000_000, 999_999_999])
def test_a_batch_is_known_by_its_file_however_many_there_are(
    name: str, k: int, tmp_path: Path
) -> None:
    files = FORMATS[name](tmp_path, ["a"])
    match = files.names.fullmatch(files.path(k).name)
    assert match is not None
    assert int(match[1]) == k
    assert not files.names.fullmatch(f"{files.path(k).name}.part")
