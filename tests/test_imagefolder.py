"""Class folders: torchvision reads them, and only what a record file vouches for is trusted."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import create_dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from dreamkd import samples
from dreamkd.errors import DataError, RunError
from dreamkd.imagefolder import Folders, folder_names
from tests.conftest import files_left_open

NAMES = ["zebra", "ape", "Éclair, 1/2"]
RECORDS = [{"key": f"{i:08d}", "note": "é"} for i in range(4)]
LABELS = [2, 0, 1, 0]


def batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 4, (4, 3, 16, 17), dtype=torch.uint8, generator=generator)


@pytest.fixture
def run(tmp_path: Path) -> Folders:
    folders = Folders(tmp_path, folder_names(NAMES))
    folders.prepare()
    return folders


def test_names_that_sort_like_their_labels_stay() -> None:
    assert folder_names(["ape", "great ape", "zebra"]) == ["ape", "great_ape", "zebra"]
    assert folder_names([str(digit) for digit in range(10)]) == list("0123456789")


def test_other_names_get_their_label_in_front() -> None:
    assert folder_names(NAMES) == ["0_zebra", "1_ape", "2_clair_1_2"]
    assert folder_names(["ape", "Ape"]) == ["0_ape", "1_Ape"]  # one folder on a Mac
    numbers = folder_names([str(number) for number in range(11)])  # "10" sorts before "2"
    assert numbers[:2] + numbers[-1:] == ["00_0", "01_1", "10_10"]


@given(st.lists(st.text(max_size=120), min_size=1, max_size=120))
def test_any_names_become_folders_in_the_order_of_the_labels(names: list[str]) -> None:
    folders = folder_names(names)
    assert folders == sorted(folders)
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all(f.isascii() and "/" not in f and f[0] != "." and len(f) < 100 for f in folders)


def test_torchvision_reads_what_was_written(run: Folders) -> None:
    run.write(0, batch(), LABELS, RECORDS)
    dataset = ImageFolder(str(run.images))
    assert dataset.classes == ["0_zebra", "1_ape", "2_clair_1_2"]
    order = [1, 3, 2, 0]  # by class, then by key
    assert [label for _, label in dataset] == [LABELS[i] for i in order]
    found = torch.stack([pil_to_tensor(picture) for picture, _ in dataset])
    assert torch.equal(found, batch()[order])


def test_timm_reads_what_was_written(run: Folders) -> None:
    run.write(0, batch(), LABELS, RECORDS)
    order = [1, 3, 2, 0]
    with files_left_open():
        pairs = list(create_dataset("", str(run.images)))
    assert [label for _, label in pairs] == [LABELS[i] for i in order]
    found = torch.stack([pil_to_tensor(picture) for picture, _ in pairs])
    assert torch.equal(found, batch()[order])


def test_samples_come_back_in_order_and_as_shards_hold_them(run: Folders) -> None:
    shard = run.write(0, batch(), LABELS, RECORDS)
    found = list(run.read(0))
    assert torch.equal(torch.stack([samples.decode(s.png) for s in found]), batch())
    assert [s.label for s in found] == LABELS
    assert [s.record for s in found] == [
        {**record, "label": label} for record, label in zip(RECORDS, LABELS, strict=True)
    ]
    run.verify(0, shard)


def test_the_manifest_line_vouches_for_every_file(run: Folders) -> None:
    shard = run.write(0, batch(), LABELS, RECORDS)
    assert shard.name == "batch-000000.jsonl"
    data = run.path(0).read_bytes()
    assert hashlib.sha256(data).hexdigest() == shard.sha256
    for line in map(json.loads, data.splitlines()):
        png = (run.images / line["file"]).read_bytes()
        assert hashlib.sha256(png).hexdigest() == line["file_sha256"]


def test_writing_again_gives_the_same_bytes(run: Folders) -> None:
    def contents() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in run.images.parent.rglob("*") if p.is_file()}

    run.write(0, batch(), LABELS, RECORDS)
    first = contents()
    run.write(0, batch().contiguous(memory_format=torch.channels_last), LABELS, RECORDS)
    assert contents() == first
    assert len(first) == 5


def first_png(run: Folders) -> Path:
    return run.images / "2_clair_1_2" / "00000000.png"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def encode_otherwise(path: Path) -> None:
    image = samples.decode(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "COMPRESS_LEVEL", 0)
        path.write_bytes(samples.encode(image))


DAMAGE: dict[str, tuple[Callable[[Folders], object], str]] = {
    "a lost PNG": (lambda r: first_png(r).unlink(), r"2_clair_1_2/00000000\.png of .* is missing$"),
    "lost PNGs": (
        lambda r: [p.unlink() for p in r.images.glob("*/*")],
        r"is missing, as are 3 more",
    ),
    "a flipped bit": (lambda r: flip(first_png(r)), r"00000000\.png is damaged: wrong checksum"),
    "another encoder": (
        lambda r: encode_otherwise(first_png(r)),
        r"images/2_clair_1_2/00000000\.png is not the file .* pixels and labels are intact",
    ),
    "another image": (
        lambda r: first_png(r).write_bytes(samples.encode(batch()[1])),
        r"images/2_clair_1_2/00000000\.png is not the file .* images or labels are others",
    ),
    "lost records": (lambda r: r.path(0).unlink(), r"batch-000000\.jsonl is missing"),
    "other records": (
        lambda r: r.path(0).write_bytes(r.path(0).read_bytes().replace(b"note", b"nope")),
        r"batch-000000\.jsonl is not the file .* pixels and labels are intact",
    ),
    "cut records": (
        lambda r: r.path(0).write_bytes(r.path(0).read_bytes()[:-30]),
        r"batch-000000\.jsonl: line 4 is not JSON",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_writing_again_mends_it(run: Folders, what: str) -> None:
    damage, says = DAMAGE[what]
    shard = run.write(0, batch(), LABELS, RECORDS)
    damage(run)
    with pytest.raises(DataError, match=says):
        run.verify(0, shard)
    assert run.write(0, batch(), LABELS, RECORDS) == shard
    run.verify(0, shard)


GOOD = {"key": "a", "label": 1, "file": "x/a.png", "file_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"key": "../a", "file": "x/../a.png"}, 'no "key"'),
        ({"key": 7}, 'no "key"'),
        ({"label": True}, "no class index"),
        ({"label": -1}, "no class index"),
        ({"label": 10**9}, "no class index"),
        ({"file": "../a.png"}, 'no CLASS/a.png as its "file"'),
        ({"file": "x/y/a.png"}, "no CLASS/a.png"),
        ({"file": "/a.png"}, "no CLASS/a.png"),
        ({"file": ".x/a.png"}, "no CLASS/a.png"),
        ({"file": "x/b.png"}, "no CLASS/a.png"),
        ({"file": None}, "no CLASS/a.png"),
        ({"file_sha256": 0}, 'no "file_sha256"'),
    ],
    ids=str,
)
def test_foreign_records_are_refused_by_line(
    run: Folders, line: dict[str, object], says: str
) -> None:
    run.path(0).write_text(json.dumps({**GOOD, "key": "b", "file": "x/b.png"}) + "\n")
    with open(run.path(0), "a") as file:
        file.write(json.dumps({**GOOD, **line}) + "\n")
    with pytest.raises(DataError, match=rf"batch-000000\.jsonl: line 2 has {says}"):
        run.pictures(0)


def test_records_without_images_or_with_one_twice_are_refused(run: Folders) -> None:
    run.path(0).write_text("")
    with pytest.raises(DataError, match="holds no images"):
        run.pictures(0)
    run.path(0).write_text(2 * (json.dumps(GOOD) + "\n"))
    with pytest.raises(DataError, match="holds an image twice"):
        run.pictures(0)


def test_what_an_unfinished_batch_left_is_removed_with_it(run: Folders) -> None:
    run.write(0, batch(), LABELS, RECORDS)  # killed before its manifest line
    (run.images / "1_ape" / "mine.png").write_bytes(b"of the user")
    run.remove(0)
    run.write(0, batch()[:2], LABELS[:2], RECORDS[:2])
    left = sorted(str(path.relative_to(run.images)) for path in run.images.glob("*/*"))
    assert left == ["0_zebra/00000001.png", "1_ape/mine.png", "2_clair_1_2/00000000.png"]


def test_an_image_that_another_batch_holds_too_is_left_to_it(run: Folders) -> None:
    """As after a worker was killed before its manifest line, in a run of another length."""
    run.write(1, batch(), LABELS, RECORDS)
    held = run.write(0, batch()[:2] ^ 1, LABELS[:2], RECORDS[:2])
    run.remove(1)
    run.verify(0, held)
    left = sorted(str(path.relative_to(run.images)) for path in run.images.glob("*/*"))
    assert left == ["0_zebra/00000001.png", "2_clair_1_2/00000000.png"]


def test_no_room_is_one_line(run: Folders) -> None:
    run.images.rmdir()
    run.images.write_text("a file where the folder was")
    with pytest.raises(RunError, match=r"cannot make .*2_clair_1_2"):
        run.write(0, batch(), LABELS, RECORDS)
