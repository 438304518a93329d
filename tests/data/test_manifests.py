"""What a run's manifest says of its shards when they are read as data."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dreamkd import manifest, shards
from dreamkd.data import ImageSet, Preprocessing, open_images, stack
from dreamkd.errors import DataError

GREY = Preprocessing(input_size=(1, 4, 4))


def write_run(run: Path, count: int) -> Path:
    """A run of `count` shards, of one image each, whose label is the shard's number."""
    (run / "shards").mkdir(parents=True)
    for k in range(count):
        images = torch.full((1, 1, 4, 4), 10 * k, dtype=torch.uint8)
        path = run / "shards" / f"shard-{k:06d}.tar"
        shard = shards.write(path, images, labels=[k], records=[{"key": str(k)}])
        manifest.append(run / "manifest.jsonl", shard.to_json())
    (run / "resolved.json").write_text(json.dumps({"config": {}}))
    return run / "shards"


def opened(spec: Path | str) -> ImageSet:
    return open_images(str(spec), preprocessing=GREY)


def labels(spec: Path | str) -> list[int]:
    return stack(opened(spec))[1].tolist()


def test_a_run_that_lost_a_shard_is_refused_as_a_whole(tmp_path):
    tars = write_run(tmp_path, 4)
    assert labels(tmp_path) == [0, 1, 2, 3]
    (tars / "shard-000002.tar").unlink()
    says = (
        rf"{tars}/shard-000002\.tar is missing although {tmp_path}/manifest\.jsonl lists it; the "
        r"run's own command makes it again"
    )
    for whole in (tmp_path, tars):
        with pytest.raises(DataError, match=says):
            opened(whole)
    (tars / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar is missing .*, as are 1 more; the"):
        opened(tmp_path)


def test_some_shards_of_a_run_are_read_by_name(tmp_path):
    tars = write_run(tmp_path, 4)
    (tars / "shard-000002.tar").unlink()
    assert labels(tars / "shard-000003.tar") == [3]
    assert labels(tars / "shard-00000[01].tar") == [0, 1]
    assert opened(tars / "*.tar").source.endswith("equal to the manifest")


def test_tars_that_lie_beside_their_manifest_are_all_there(tmp_path):
    tars = write_run(tmp_path / "run", 2)
    shutil.copy(tmp_path / "run" / "manifest.jsonl", tars.rename(tmp_path / "flat"))
    assert labels(tmp_path / "flat") == [0, 1]
    (tmp_path / "flat" / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"flat/shard-000001\.tar is missing"):
        opened(tmp_path / "flat")


def test_one_manifest_does_not_vouch_for_the_tars_of_another_run(tmp_path):
    for name in ("job-0", "job-1"):
        write_run(tmp_path / name, 1)
    spec = f"{tmp_path}/job-*/shards/*.tar"
    images = opened(spec)
    assert (
        images.source == f"{spec}: 2 pictures in 2 tars, WebDataset layout, equal to the manifest"
    )
    assert images.pictures.synthesised
    (tmp_path / "job-1" / "manifest.jsonl").unlink()
    images = opened(spec)
    assert images.source == f"{spec}: 2 pictures in 2 tars, WebDataset layout"
    assert not images.pictures.synthesised


def test_settings_without_a_manifest_make_no_images_synthesised(tmp_path):
    tars = write_run(tmp_path, 1)
    assert opened(tmp_path).pictures.synthesised
    (tmp_path / "manifest.jsonl").unlink()
    for spec in (tmp_path, tars, tars / "shard-000000.tar"):
        images = opened(spec)
        assert not images.pictures.synthesised
        assert not images.source.endswith("equal to the manifest")
