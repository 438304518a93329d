"""The bank: written beside the caller, seen by it at once, and never lost on the way out."""

import builtins
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from PIL import Image

from dreamkd import events
from dreamkd.bank import Bank
from dreamkd.batch import Batch
from dreamkd.errors import RunError, Stopped
from dreamkd.formats import FORMATS
from dreamkd.runfolder import open_run
from dreamkd.runs import Run
from dreamkd.shards import Tars

LABELS = torch.tensor([1, 0])


def images(k: int) -> torch.Tensor:
    return torch.full((2, 3, 8, 8), 50 * k, dtype=torch.uint8)


def made(k: int, **given: Any) -> Batch:
    numbers = {"r_feature": 0.5, "r_feature_chance": 0.25, "lr": 0.1, "terms": {"l2": 1.0}}
    seen = {"predictions": torch.tensor([1, 1]), "confidences": torch.tensor([0.75, 0.5])}
    return Batch(**{"images": images(k), "labels": LABELS, **seen, **numbers, **given})


def add(bank: Bank, k: int) -> None:
    bank.add(k, made(k), start=2 * k, class_names=("a", "b"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with open_run(tmp_path / "run") as opened:
        yield opened


def manifest(run: Run) -> list[dict[str, Any]]:
    path = run.folder / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_added_is_seen_at_once(run: Run, name: str) -> None:
    with Bank(run, files=FORMATS[name](run.folder, ["a", "b"])) as bank:
        assert (bank.last, run.advanced) == (-1, False)
        for k in range(3):
            add(bank, k)
            assert bank.held([k]) == [True]
            assert (bank.last, run.advanced) == (k, True)
        add(bank, 3)
        ((read, labels),) = bank.read([3])
        assert torch.equal(read, images(3))
        assert torch.equal(labels, LABELS)
        add(bank, 4)
        assert [line["batch"] for line in bank.lines] == [0, 1, 2, 3, 4]
    assert manifest(run) == bank.lines
    assert [line["start"] for line in bank.lines] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("names", [("a", "b"), ()])
def test_a_batch_is_kept_with_what_is_known_of_it(run: Run, names: tuple[str, ...]) -> None:
    with Bank(run) as bank:
        batch = made(0, verifiers={"other": torch.tensor([0, 0])})
        bank.add(0, batch, start=7, class_names=names)
        (line,) = bank.lines
    records = [sample.record for sample in Tars(run.folder).read(0)]
    views = [(1, 0.75, {"other": 0}), (1, 0.5, {"other": 0})]
    found = [(r["teacher_top1"], r["teacher_probability"], r["verifiers"]) for r in records]
    assert [r["key"] for r in records] == ["00000007", "00000008"]
    assert [r["class_name"] for r in records] == (["b", "a"] if names else ["1", "0"])
    assert found == views
    numbers = {"start": 7, "r_feature": 0.5, "r_feature_chance": 0.25, "lr": 0.1}
    shares = {"terms": {"l2": 1.0}, "teacher_top1": 50.0, "verifiers": {"other": 50.0}}
    assert numbers.items() <= line.items()
    assert all(line[name] == value for name, value in shares.items())


def page_of(run: Run, *, width: int) -> list[int]:
    """Brightness of the first images on the page; 255 where there is none."""
    with Image.open(run.folder / "contact-sheet.png") as page:
        # 8 px enlarged to 64, two more between neighbours
        shown = [page.getpixel((66 * i, 63)) for i in range(width)]
    assert all(len(set(pixel)) == 1 for pixel in shown)
    return [pixel[0] for pixel in shown]


def test_adding_renews_the_page_sorted_by_class(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkd.clock._RATIO", 0.0)
    with Bank(run) as bank:
        for k, values in enumerate(([0, 0, 255, 255, 255], [50, 0, 50, 0, 255])):
            add(bank, k)
            bank.flush()
            assert page_of(run, width=5) == values


def test_the_page_is_of_the_last_batches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkd.bank._SHEET_IMAGES", 3)
    monkeypatch.setattr("dreamkd.clock._RATIO", 0.0)
    with Bank(run) as bank:
        for k in range(3):
            add(bank, k)
        bank.flush()
        live = page_of(run, width=4)
        bank.complete(3)
    assert live == page_of(run, width=4) == [100, 100, 50, 255]


def test_the_page_is_renewed_when_it_is_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkd.clock._RATIO", 1e9)
    with Bank(run) as bank:
        for k in range(2):
            add(bank, k)
        bank.flush()
        assert page_of(run, width=3) == [0, 0, 255]
        bank.complete(2)
    assert page_of(run, width=3) == [50, 0, 50]


class GatedTars(Tars):
    """A disk that is slow until its gate opens, and says when a batch is written."""

    def __init__(self, run: Path, log: list[str]) -> None:
        super().__init__(run)
        self.gate = Event()
        self.log = log

    def write(self, k: int, *batch: Any) -> Any:
        assert self.gate.wait(60)
        shard = super().write(k, *batch)
        self.log.append(f"written {k}")
        return shard


def test_adding_returns_before_the_batch_is_written_and_waits_for_the_one_before(run: Run) -> None:
    log: list[str] = []
    files = GatedTars(run.folder, log)
    with Bank(run, files=files) as bank:
        add(bank, 0)
        log.append("added 0")
        opener = Thread(target=files.gate.set)
        opener.start()
        add(bank, 1)
        log.append("added 1")
        opener.join()
    assert log.index("added 0") < log.index("written 0") < log.index("added 1")
    assert [line["batch"] for line in manifest(run)] == [0, 1]


def break_the_folder(run: Run) -> None:
    (run.folder / "shards").rmdir()
    (run.folder / "shards").write_text("a file where the folder was")


NEXT: dict[str, Callable[[Bank], object]] = {
    "flush": lambda bank: bank.flush(),
    "add": lambda bank: add(bank, 1),
    "read": lambda bank: next(bank.read([0])),
    "held": lambda bank: bank.held([0]),
    "lines": lambda bank: bank.lines,
    "page": lambda bank: bank.complete(1),
    "leaving": lambda bank: bank.__exit__(None, None, None),
}


@pytest.mark.parametrize("call", NEXT)
def test_an_error_of_the_writer_is_raised_by_the_next_call(run: Run, call: str) -> None:
    bank = Bank(run)
    break_the_folder(run)
    add(bank, 0)
    with pytest.raises(RunError, match=r"cannot write .*shard-000000\.tar"):
        NEXT[call](bank)
    bank.flush()  # said once
    assert manifest(run) == []


@pytest.mark.parametrize("reason", [Stopped("asked"), KeyboardInterrupt()], ids=repr)
def test_leaving_by_an_exception_keeps_what_was_made(run: Run, reason: BaseException) -> None:
    files = GatedTars(run.folder, [])

    def work() -> None:
        with Bank(run, files=files) as bank:
            add(bank, 0)
            Thread(target=files.gate.set).start()
            raise reason

    with pytest.raises(type(reason)):
        work()
    assert [line["batch"] for line in manifest(run)] == [0]
    assert Bank(run).held([0, 1]) == [True, False]


def test_leaving_by_an_exception_says_what_was_lost(run: Run) -> None:
    heard: list[events.Event] = []

    def work() -> None:
        with Bank(run, on_event=heard.append) as bank:
            break_the_folder(run)
            add(bank, 0)
            raise Stopped("asked")

    with pytest.raises(Stopped, match="asked"):
        work()
    (hint,) = heard
    assert isinstance(hint, events.Hint)
    assert hint.text.startswith("the last batch was not kept: cannot write ")


def test_a_batch_remade_to_the_same_bytes_adds_no_line(run: Run) -> None:
    for _ in range(2):
        with Bank(run) as bank:
            add(bank, 0)
    assert len(manifest(run)) == 1


def test_the_page_skips_damaged_batches(run: Run) -> None:
    with Bank(run) as bank:
        add(bank, 0)
        add(bank, 1)
        bank.flush()
        path = run.folder / "shards" / "shard-000000.tar"
        path.write_bytes(path.read_bytes()[:700])
        bank.complete(2)
    assert page_of(run, width=3) == [50, 50, 255]


def unreadable(path: Path, patch: pytest.MonkeyPatch, *, code: int, call: str) -> None:
    """What the system says to those who may not; root may do anything."""

    def refused(given: Any, kept: Any) -> Any:
        if Path(given) == path:
            raise OSError(code, os.strerror(code), str(path))
        return kept()

    plain, stat = builtins.open, Path.stat
    if call == "open":
        patch.setattr("builtins.open", lambda p, *a, **k: refused(p, lambda: plain(p, *a, **k)))
    else:
        patch.setattr(Path, "stat", lambda p, **k: refused(p, lambda: stat(p, **k)))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shards", "shards/shard-000000.tar"),
        ("folder", "records/batch-000000.jsonl"),
        ("folder", "images/b/00000000.png"),
    ],
)
@pytest.mark.parametrize("call", ["open", "stat"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_what_cannot_be_read_is_not_made_again(
    run: Run, name: str, file: str, call: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[events.Event] = []
    path = run.folder / file
    with Bank(run, files=FORMATS[name](run.folder, ["a", "b"]), on_event=heard.append) as bank:
        add(bank, 0)
        bank.flush()
        line = f"cannot read {path}: {os.strerror(code)}; make it readable, then run the same"
        with monkeypatch.context() as patch:
            unreadable(path, patch, code=code, call=call)
            with pytest.raises(RunError, match=f"^{line} command"):
                bank.held([0])
        assert not heard
        assert bank.held([0]) == [True]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR])
def test_what_is_not_there_is_made_again(
    run: Run, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it goes between a look and the reading."""
    heard: list[events.Event] = []
    with Bank(run, on_event=heard.append) as bank:
        add(bank, 0)
        bank.flush()
        for call in ("open", "stat"):
            with monkeypatch.context() as patch:
                unreadable(Tars(run.folder).path(0), patch, code=code, call=call)
                assert bank.held([0]) == [False]
    assert len(heard) == 2


def test_a_folder_that_cannot_be_listed_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with Bank(run) as bank:
        add(bank, 0)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", refuse)
            with pytest.raises(RunError, match=r"^cannot look into .*shards: Permission denied;"):
                bank.complete(1)
        bank.complete(1)


def test_a_batch_that_another_worker_made_elsewhere_is_missed(run: Run) -> None:
    with Bank(run) as bank:
        add(bank, 0)
        add(bank, 2)
        with pytest.raises(RunError, match="lacks batch 1, which was made; all workers"):
            bank.complete(3)
        assert [line["batch"] for line in bank.lines] == [0, 2]
