"""The run folder: identity, lock, manifest, state."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreamkd import files, identity
from dreamkd.config import InvertConfig
from dreamkd.errors import RunError
from dreamkd.events import Event, Hint, Note, Progress
from dreamkd.runfolder import default_folder, open_run
from dreamkd.runs import Run

RESOLVED = {
    "requested": {"model": "net", "threads": "auto", "seed": 0},
    "config": {"model": "net", "threads": 2, "seed": 0},
    "teacher_sha256": "abc",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_run(tmp_path / "run") as run:
        run.settle(RESOLVED)
    return tmp_path / "run"


@pytest.mark.parametrize("threads", ["auto", 2])
def test_the_same_wish_resumes(folder: Path, threads: object) -> None:
    with open_run(folder) as run:
        assert run.resume({"model": "net", "threads": threads, "seed": 0})


def test_a_new_folder_has_nothing_to_resume(tmp_path: Path) -> None:
    with open_run(tmp_path / "new") as run:
        assert not run.resume({"model": "net"})


def test_a_different_run_is_refused_with_every_difference_named(folder: Path) -> None:
    with open_run(folder) as run, pytest.raises(RunError) as error:
        run.resume({"model": "other", "threads": 3, "seed": 0})
    assert "model is 'net' there and 'other' here; threads is 2 there and 3 here" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ({"model": "a/t.pt"}, {"model": "/b/t.pt"}, True),  # its hash says whether it is the same
        ({"model": "t.pt"}, {"model": "resnet18"}, False),
        ({"model": "resnet18"}, {"model": "resnet34"}, False),
        ({"verifier": ["a.pt", "net"]}, {"verifier": ["b/a.pt", "net"]}, True),
        ({"verifier": ["a.pt", "net"]}, {"verifier": ["b/a.pt", "other"]}, False),
        ({"verifier": ["a.pt"]}, {"verifier": ["a.pt", "b.pt"]}, False),
        ({"classes": "cat/dog"}, {"classes": "cat/cow"}, False),  # no path, whatever it looks like
    ],
)
def test_a_file_counts_by_what_it_holds(
    then: dict[str, object], now: dict[str, object], same: bool
) -> None:
    assert (identity.differing(now, then=then, decided=then) == []) is same


def test_gpus_are_alike_and_a_cpu_is_none() -> None:
    settings = [
        identity.requested_settings(InvertConfig(model="m", device=device))
        for device in ("cuda:0", "cuda:1", "cpu")
    ]
    assert settings[0] == settings[1] != settings[2]


def test_other_versions_are_named_and_end_no_finished_run(folder: Path) -> None:
    now = identity.versions()
    with open_run(folder) as run:
        run.settle(RESOLVED | {"versions": {**now, "torch": "2.0.1"}})
        line = rf"made with torch 2\.0\.1 \(now {re.escape(now['torch'])}\);"
        with pytest.raises(RunError, match=line):
            run.begin()
        run.settle(RESOLVED | {"versions": now})
        run.begin()


def refuse(path: Path, **_: object) -> None:
    """What the system says to those who may not; root may do anything."""
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_finished_run_in_a_read_only_folder_is_not_extended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(folder) as run:
        run.settle(RESOLVED | {"versions": identity.versions()})
        run.finish({"images": 1})
        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(RunError, match=r"^cannot remove .*result\.json: Permission denied;"):
            run.begin()
        assert run.result == {"images": 1}


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"locks no files \(No locks available\)"):  # noqa: SIM117
        with open_run(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()


def test_a_changed_teacher_is_refused(folder: Path) -> None:
    with open_run(folder) as run:
        run.require("teacher_sha256", "abc")
        with pytest.raises(RunError, match="made with teacher_sha256 abc, which is now xyz"):
            run.require("teacher_sha256", "xyz")


def test_of_a_changed_card_only_the_change_is_named(folder: Path) -> None:
    with open_run(folder) as run:
        run.settle(RESOLVED | {"teacher": {"mean": [0.5], "std": [0.2], "name": "x" * 100}})
        with pytest.raises(
            RunError, match=r'teacher \{"std": \[0.2\]\}, which is now \{"std": \[0.3\]\}'
        ):
            run.require("teacher", {"mean": [0.5], "std": [0.3], "name": "x" * 100})


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dreamkd.runfolder import open_run\n"
        "with open_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by process {holder.pid}"), open_run(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with open_run(folder) as run:
        assert run.resolved == RESOLVED


def test_state_comes_back_to_the_bit(folder: Path) -> None:
    tensors = {"w": torch.randn(3, 4), "n": torch.tensor(7)}
    with open_run(folder) as run:
        assert run.load_state("student") is None
        run.save_state("student", tensors, {"step": 5, "seconds": 0.1})
        saved = run.load_state("student")
    assert saved is not None
    assert saved[1] == {"step": 5, "seconds": 0.1}
    assert all(torch.equal(saved[0][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "Input/output error"),
        (errno.ESTALE, "Stale file handle"),
    ],
)
def test_a_state_that_cannot_be_read_is_no_damage_and_stays(
    folder: Path, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    path = folder / "state-student.safetensors"
    with open_run(folder) as run:
        run.save_state("student", {"w": torch.ones(3)}, {"step": 5})
        before = path.read_bytes()

        def refuse(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code), str(path))

        read = (
            f"^cannot read {path}: {said}; make it readable, or remove it to have what it held "
            "made again$"
        )
        look = rf"^{path}: cannot be looked for \({said}\); choose another --out$"
        for call, line in (
            ("builtins.open", read),
            ("dreamkd.checkpoint.safe_open", read),
            ("pathlib.Path.stat", look),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(call, refuse)
                with pytest.raises(RunError, match=line):
                    run.load_state("student", on_event=heard.append)
        assert not heard
        assert path.read_bytes() == before
        saved = run.load_state("student")
    assert saved is not None
    assert saved[1] == {"step": 5}


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_state_that_is_there_and_wrong_is_damage(folder: Path, content: bytes | None) -> None:
    heard: list[Event] = []
    with open_run(folder) as run:
        run.save_state("student", {"w": torch.ones(3)}, {"step": 5})
        path = folder / "state-student.safetensors"
        path.write_bytes(path.read_bytes()[:-1] if content is None else content)
        assert run.load_state("student", on_event=heard.append) is None
    (hint,) = heard
    assert isinstance(hint, Hint)
    assert hint.text.endswith("; what it held is made again")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("resolved.json", "{"),
        ("resolved.json", "[]"),
        ("resolved.json", "{}"),
        ("manifest.jsonl", "x\n"),
        ("manifest.jsonl", "{}\n"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(RunError, match=name), open_run(folder) as run:
        assert run.result


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in (("file/run", "Not a directory"), ("n" * 300, "File name too long")):
        with pytest.raises(RunError, match=rf"cannot be written \({reason}"):  # noqa: SIM117
            with open_run(tmp_path / folder):
                pass


def test_a_lock_holds_on_a_disk_without_room_for_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    other = open_run(tmp_path / "run")
    with open_run(tmp_path / "run"), pytest.raises(RunError, match="in use by process unknown"):
        other.__enter__()


def test_events_and_progress_are_copied_beside_the_facts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress now and then: every 2 seconds in its own file, every 30 among the events."""
    times = {0: 100.0, 1: 101.0, 2: 102.5, 3: 120.0, 4: 131.0, 9: 131.5}
    said = [Note("hello"), *(Progress("images", k, 9, "steps", {"ce": 1.0}) for k in times)]
    heard, newest = [], []
    with open_run(folder) as run:
        listen = run.listener(heard.append)
        listen(said[0])
        for event, now in zip(said[1:], times.values(), strict=True):
            monkeypatch.setattr("dreamkd.log.time.time", lambda now=now: now)
            listen(event)
            newest.append(json.loads((folder / "progress.json").read_text())["done"])
    assert heard == said
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert lines[0]["text"] == "hello"
    assert [line["done"] for line in lines[1:]] == [0, 4, 9]
    assert newest == [0, 0, 2, 3, 4, 9]


def test_what_was_said_before_a_folder_was_a_run_is_kept_with_what_follows(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        listen = run.listener(lambda _: None)
        listen(Note("planned"))
        listen(Progress("timing", 1, 1, "steps"))
        assert not (tmp_path / "run" / "events.jsonl").exists()  # it may yet be refused
        run.settle({"requested": {}, "config": {}})
        listen(Note("begun"))
        listen(Note("done"))
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["planned", "begun", "done"]


def test_who_helps_is_heard_once_the_leader_made_it_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as leader:
        helper = Run(leader.folder)  # joins before
        listen = helper.listener(lambda _: None)
        listen(Hint("early"))
        leader.settle({"requested": {}, "config": {}})
        listen(Hint("late"))
    lines = (leader.folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["early", "late"]


def test_default_folders_count_up_and_find_the_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wish = {"requested": {"model": "a/t.pt", "mean": (0.5,)}, "student_sha256": "a5"}
    first = default_folder("invert", "a/t.pt", wish)
    assert first == Path("runs/invert-t-1")
    with open_run(first) as run:
        run.settle({**identity.as_json(wish), "config": {}})
    assert default_folder("invert", "a/t.pt", wish) == first
    others = ({**wish, "student_sha256": "b6"}, {**wish, "requested": {"model": "a/t.pt"}})
    for other in others:
        assert default_folder("invert", "a/t.pt", other) == Path("runs/invert-t-2")
    with open_run(first) as run:
        run.finish({"images": 1})
    assert default_folder("invert", "a/t.pt", wish) == Path("runs/invert-t-2")
    assert default_folder("distill", "t.pt", wish) == Path("runs/distill-t-1")
    assert default_folder("invert", "timm:x.y", wish) == Path("runs/invert-timm-x.y-1")


def test_a_default_folder_that_was_left_before_it_was_a_run_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that was killed, unlike one that is still at it."""
    monkeypatch.chdir(tmp_path)
    first = Path("runs/invert-t-1")
    with open_run(first):
        assert default_folder("invert", "t.pt", {}) == Path("runs/invert-t-2")
    first.mkdir(parents=True)
    for name in (".lock", ".workers", ".resolved.json.1.part"):
        (first / name).touch()
    assert default_folder("invert", "t.pt", {}) == first
    with open_run(Path("runs/invert-t-2")) as run:  # unfinished: it goes on, wherever it lies
        run.settle({"requested": {}, "config": {}})
    assert default_folder("invert", "t.pt", {}) == run.folder
    run.finish({})
    with open(first / ".workers", "r+b") as helper:
        files.lock(helper.fileno(), first, shared=True)  # it has lost its leader, and hangs
        assert default_folder("invert", "t.pt", {}) == Path("runs/invert-t-3")
    assert default_folder("invert", "t.pt", {}) == first
    for path in first.iterdir():
        path.unlink()
    assert default_folder("invert", "t.pt", {}) == first
    shutil.rmtree(run.folder)
    (first / "notes.txt").touch()
    assert default_folder("invert", "t.pt", {}) == Path("runs/invert-t-2")


def test_a_default_folder_has_a_name_that_a_disk_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["n" * 250 + ".pt", "n" * 240 + ".pt"]  # two runs all the same
    for number, name in enumerate(names, start=1):
        folder = default_folder("invert", name, {"requested": {"model": name}})
        assert folder == Path("runs") / f"invert-{'n' * 100}-{number}"
        with open_run(folder) as run:
            run.settle({"requested": {"model": name}, "config": {}})
        assert default_folder("invert", name, {"requested": {"model": name}}) == folder


def test_default_folders_that_cannot_be_seen_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "stat", refuse)
    line = r"^runs/invert-net-1: cannot be looked for \(Permission denied\); choose another --out$"
    with pytest.raises(RunError, match=line):
        default_folder("invert", "net", {})
