"""Work done ahead: in order, no further than told, and nothing left behind."""

import itertools
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dreamkd.ahead import ahead, all_of
from dreamkd.events import Event, Progress


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = {*threading.enumerate()}
    yield
    left = {*threading.enumerate()} - before
    assert not [thread for thread in left if thread.name.startswith("dreamkd-ahead")]


def test_results_are_in_order_whatever_finishes_first() -> None:
    last = threading.Event()

    def work(k: int) -> int:
        if k == 2:
            last.set()
        assert last.wait(20)  # the first two wait for the third
        return k * k

    assert list(ahead(work, range(5), workers=3)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_no_more_is_taken_than_waits_and_is_used(workers: int) -> None:
    taken: list[int] = []
    items = (taken.append(k) or k for k in range(6))
    stream = ahead(lambda k: k, items, workers=workers)
    assert not taken
    for used in range(1, 7):
        assert next(stream) == used - 1
        assert len(taken) == min(6, used + workers)
    assert list(stream) == []


@pytest.mark.parametrize(("cpus", "workers"), [(3, 3), (64, 16), (None, 1)])
def test_there_are_as_many_threads_as_cpus(
    cpus: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    all_at_once = threading.Barrier(workers)
    counted = itertools.count()
    stream = ahead(lambda _: all_at_once.wait(20), (next(counted) for _ in range(4 * workers)))
    next(stream)
    assert next(counted) == workers + 1
    assert len(list(stream)) == 4 * workers - 1


def test_what_is_raised_comes_in_its_place() -> None:
    stream = ahead(lambda k: 6 // (2 - k), range(9), workers=4)
    assert [next(stream), next(stream)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_closed_early_it_runs_nothing_more() -> None:
    ran: list[int] = []
    stream = ahead(ran.append, range(100), workers=2)
    next(stream)
    stream.close()
    assert {0} <= {*ran} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("silent", "told"), [(-1.0, [1, 2, 3]), (4.5, [2, 3]), (9.0, []), (1e9, [])]
)
def test_progress_is_told_where_it_takes_long(
    silent: float, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100, 3)
    heard: list[Event] = []
    monkeypatch.setattr("dreamkd.ahead._SILENT", silent)
    monkeypatch.setattr("dreamkd.ahead.time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = all_of(str, [5, 6, 7], phase="check", unit="tars", on_event=heard.append)
    assert found == ["5", "6", "7"]
    assert heard == [Progress("check", done, 3, "tars") for done in told]
