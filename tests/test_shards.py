"""Shards: the same bytes twice, read back by everyone, and nothing but `DataError` on damage."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_dataset

from dreamkd import samples, shards
from dreamkd.errors import DataError
from dreamkd.files import sha256_file
from tests.conftest import files_left_open


def batch(count: int = 3, channels: int = 3, side: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, side, side + 1)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = [(7 * i + 3) % 10 for i in range(count)]
    records = [{"key": f"{seed:05d}_{i:03d}", "loss": 0.1 * i, "note": "é"} for i in range(count)]
    return images, labels, records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard-00000.tar"


def attempt(function, argument):
    """The result, or the message of the `DataError`; no other exception is caught."""
    try:
        return function(argument)
    except DataError as error:
        return str(error)


def contents(path: Path):
    return [(s.key, s.label, samples.decode(s.png).tolist()) for s in shards.read(path)]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    side=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_reads_back_what_was_written(tmp_path_factory, count, channels, side, seed):
    path = tmp_path_factory.mktemp("shards") / "shard-00000.tar"
    images, labels, records = batch(count, channels, side, seed)
    shard = shards.write(path, images, labels, records)
    found = list(shards.read(path))
    assert torch.equal(torch.stack([samples.decode(s.png) for s in found]), images)
    assert [s.label for s in found] == labels
    assert [s.record for s in found] == [
        {**record, "label": label} for record, label in zip(records, labels, strict=True)
    ]
    assert shard.count == count
    assert shard.sha256 == sha256_file(path)
    shards.verify(path, shard)


def test_writing_again_gives_the_same_bytes(tmp_path: Path):
    images, labels, records = batch()
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    shards.write(first, images, labels, records)
    reordered = [dict(reversed(record.items())) for record in records]
    strided = images.contiguous(memory_format=torch.channels_last)
    shards.write(second, strided, labels, reordered)
    assert first.read_bytes() == second.read_bytes()


def test_members_lie_in_order_under_constant_headers(path: Path):
    shards.write(path, *batch(2))
    with tarfile.open(path) as tar:
        found = tar.getmembers()
    assert [m.name for m in found] == [
        f"00000_{i:03d}.{suffix}" for i in range(2) for suffix in ("png", "cls", "json")
    ]
    headers = {(m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime, m.type) for m in found}
    assert headers == {(0o644, 0, 0, "", "", 0, tarfile.REGTYPE)}
    assert path.read_bytes()[257:263] == b"ustar\0"


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pngs_are_grey_or_rgb(path: Path, channels, mode):
    shards.write(path, *batch(1, channels))
    assert Image.open(io.BytesIO(next(shards.read(path)).png)).mode == mode


def test_webdataset_reads_the_shards(path: Path):
    images, labels, records = batch()
    shards.write(path, images, labels, records)
    with files_left_open():
        dataset = webdataset.WebDataset(str(path), shardshuffle=False)
        found = list(dataset.decode("torchrgb8"))
        del dataset
    assert [s["__key__"] for s in found] == [r["key"] for r in records]
    assert [s["cls"] for s in found] == labels
    assert [s["json"]["note"] for s in found] == ["é"] * 3
    assert torch.equal(torch.stack([torch.as_tensor(s["png"]) for s in found]), images)


def test_timm_reads_the_shards(tmp_path: Path):
    written = [batch(seed=seed) for seed in range(2)]
    for k, arguments in enumerate(written):
        shards.write(tmp_path / f"shard-{k:05d}.tar", *arguments)
    with files_left_open():
        dataset = create_dataset("wds/", tmp_path, split="shard-{00000..00001}.tar|6")
        assert len(dataset) == 6
        found = list(dataset)
        del dataset
    assert [label for _, label in found] == [y for _, labels, _ in written for y in labels]
    pixels = torch.stack([torch.tensor(list(picture.tobytes())) for picture, _ in found])
    images = torch.cat([images for images, _, _ in written])
    assert torch.equal(pixels.view(6, 4, 5, 3).permute(0, 3, 1, 2), images)


def test_another_encoder_is_told_from_damage(path: Path, monkeypatch):
    images, labels, records = batch(side=16)
    shard = shards.write(path, images // 64, labels, records)
    monkeypatch.setattr(samples, "COMPRESS_LEVEL", 0)
    other = shards.write(path, images // 64, labels, records)
    assert other.sha256 != shard.sha256
    assert other.pixels_sha256 == shard.pixels_sha256
    with pytest.raises(DataError, match=r"shard-00000\.tar .* pixels and labels are intact"):
        shards.verify(path, shard)
    shards.write(path, images // 64 + 1, labels, records)
    with pytest.raises(DataError, match=r"shard-00000\.tar .* images or labels are others"):
        shards.verify(path, shard)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00000\.tar is missing"):
        shards.verify(path, shard)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "shard-00000.tar"
    return path, shards.write(path, *batch(2)), path.read_bytes(), contents(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_shard_is_refused_or_equal(written, data):
    path, shard, whole, intact = written
    start = data.draw(st.integers(0, 6 * 1024), label="start")  # 6 members of one block each
    length = data.draw(st.integers(0, 600), label="length")
    patch = data.draw(st.binary(max_size=4) | st.just(whole[512:1200]), label="patch")
    mutated = whole[:start] + patch + whole[start + length :]
    path.write_bytes(mutated)
    found = attempt(contents, path)
    assert path.name in found if isinstance(found, str) else found == intact
    if mutated != whole:
        with pytest.raises(DataError, match=path.name):
            shards.verify(path, shard)


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 8 * 6 * 1024 - 1))
def test_a_flipped_bit_never_changes_a_pixel_or_label(written, bit):
    path, _, whole, intact = written
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    found = attempt(contents, path)
    assert path.name in found if isinstance(found, str) else found == intact


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros(2, 3, 4, 4)},
        {"images": torch.zeros(2, 2, 4, 4, dtype=torch.uint8)},
        {"images": torch.zeros(2, 1, 1, 4097, dtype=torch.uint8)},
        {"labels": [1]},
        {"labels": [1, -1]},
        {"records": [{"key": "a"}, {"key": "a"}]},
        {"records": [{"key": "a"}, {"key": "b.c"}]},
        {"records": [{"key": "a"}, {"key": "b", "loss": float("nan")}]},
    ],
)
def test_what_is_no_batch_is_not_written(path: Path, change):
    images, labels, records = batch(2)
    with pytest.raises(ValueError, match=r"."):
        shards.write(path, **{"images": images, "labels": labels, "records": records, **change})
    assert not path.exists()
