"""The run folder on disk: what may lie there, who holds it, where work begins and ends."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from dreamkd import files, identity, manifest, runfolder
from dreamkd.errors import RunError
from dreamkd.runfolder import join_run, open_run

SHARD = manifest.Shard("shard-000000.tar", 2, "0" * 64, "1" * 64)


def resolved(**versions: str) -> dict[str, Any]:
    return {"requested": {}, "config": {}, "versions": identity.versions() | versions}


def test_a_log_may_lie_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "slurm-1.out").write_text("began")
    with open_run(tmp_path) as run:
        run.settle(resolved())
    assert (tmp_path / "slurm-1.out").read_text() == "began"


@pytest.mark.parametrize(
    "name",
    [
        *("manifest.jsonl", "result.json", "env.json", "events.jsonl", "progress.json"),
        *("seconds.json", "shards", "images", "records", "labels", "contact-sheet.png"),
        *("student.safetensors", "state-student.safetensors", "state-images.safetensors"),
    ],
)
def test_nothing_that_would_be_replaced_may_lie_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(RunError, match=rf"holds no run \({name}\)"), open_run(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nor_may_any_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(RunError, match=r"holds no run \(photos\)"), open_run(tmp_path):
        pass


def test_the_lock_names_its_holder_and_nobody_before(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("4194304 on a machine of a longer name\n" * 9)
    with open_run(tmp_path):
        line = (
            rf"{os.getpid()} on {re.escape(platform.node())} since \d{{4}}-\d\d-\d\d [\d:.]{{12}}\n"
        )
        assert re.fullmatch(line, runfolder.holder(tmp_path))


def test_one_that_came_second_leaves_the_folder_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw none before, and was too late to lock it."""
    folder = tmp_path / "run"
    with open_run(folder) as first:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", lambda path: False)
            with pytest.raises(RunError, match="in use by process"):
                open_run(folder).__enter__()
        first.settle(resolved())
        assert (folder / ".lock").exists()


def test_a_lock_that_went_with_its_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes the folder between another's opening of the file and its locking."""
    folder, locked = tmp_path / "run", []

    def lock_late(handle: int, place: Path) -> None:
        if not locked:
            (place / ".lock").unlink()
            place.rmdir()
        locked.append(handle)
        files.lock(handle, place)

    monkeypatch.setattr(runfolder, "lock", lock_late)
    with open_run(folder) as run:
        run.settle(resolved())
        with pytest.raises(RunError, match="in use by process"), open_run(folder):
            pass
    assert len(locked) == 3


def test_helpers_work_in_the_leaders_folder_and_hold_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.settle(resolved())
        leader = runfolder.holder(folder)
        first, second = (join_run(folder, leader=leader) for _ in range(2))
        with first, second:
            pass
        orphan = join_run(folder, leader=leader)
        orphan.__enter__()
        with pytest.raises(RunError, match="all workers need the same folder"):
            join_run(folder, leader=leader + "another").__enter__()
    with pytest.raises(RunError, match="by a worker of an earlier start"), open_run(folder):
        pass
    orphan.__exit__(None, None, None)
    with open_run(folder):
        assert runfolder.holder(folder) != leader


def test_a_worker_at_work_keeps_what_it_writes(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.settle(resolved())
        leader = runfolder.holder(run.folder)
        orphan = join_run(run.folder, leader=leader)
        orphan.__enter__()
    torn = tmp_path / "run" / ".shard-000000.tar.1.part"
    torn.touch()
    with pytest.raises(RunError, match="by a worker of an earlier start"), open_run(run.folder):
        pass
    assert torn.exists()
    orphan.__exit__(None, None, None)
    with open_run(run.folder):
        assert not torn.exists()


def test_nothing_is_left_of_what_did_not_become_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "a" / "b" / "run"):
        pass
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with open_run(tmp_path / "mine" / "run"):
        pass
    assert [*tmp_path.iterdir()] == [tmp_path / "mine"]


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(RunError, match=r"is a link to .*gone, which is not there"):
        open_run(tmp_path / "run").__enter__()


def test_a_damaged_result_is_as_if_there_were_none(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.finish({"images": 1})
        (run.folder / "result.json").write_text("x")
        assert run.result is None


def test_images_of_a_batch_that_was_made_again_count_once(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.settle(resolved())
        for batch, count in ((0, 2), (1, 3), (0, 2)):
            run.add_line({**SHARD.to_json(), "batch": batch, "start": 0, "count": count})
    with open_run(tmp_path) as run:
        assert (len(run.lines), run.images) == (3, 5)


def test_work_begins_once_until_it_is_finished(tmp_path: Path) -> None:
    """Then it may be extended: what was said of its end no longer holds."""
    with open_run(tmp_path / "run") as run:
        run.settle(resolved())
        run.finish({"images": 1})
        run.begin()
        assert run.result is None
        (run.folder / "result.json").write_text("{}")
        run.settle(resolved(torch="2.0.1"))
        run.begin()  # neither looks nor removes again
        assert run.result == {}
        run.finish({"images": 2})
        with pytest.raises(RunError, match=r"made with torch 2\.0\.1"):
            run.begin()
        assert run.result == {"images": 2}
        run.settle(resolved())
        run.begin()
        assert run.result is None
