"""Work done a little ahead of its use, in order, on a few threads.

For what releases the interpreter lock: reading, hashing, decoding.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dreamkd.events import OnEvent, Progress

T = TypeVar("T")
R = TypeVar("R")

#: Threads at most, where there are as many CPUs.
_MOST = 16

#: Seconds before `all_of` begins to tell how far it is.
_SILENT = 2.0


def ahead(
    work: Callable[[T], R], items: Iterable[T], *, workers: int | None = None
) -> Generator[R]:
    """Yield `work` of each item, in order, while the next ones are under way.

    Args:
        work: called in threads; what it raises is raised where its result would be yielded.
        workers: threads, and results that wait at most; None for one per CPU, at most 16.
    """
    workers = workers or min(_MOST, os.cpu_count() or 1)
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dreamkd-ahead")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)


def all_of(
    work: Callable[[T], R], items: Sequence[T], *, phase: str, unit: str, on_event: OnEvent
) -> list[R]:
    """`work` of each item, in order.

    Args: phase, unit, on_event: what is done to how many of what, told where it takes long.
    """
    began, found = time.monotonic(), []
    for result in ahead(work, items):
        found.append(result)
        if time.monotonic() - began > _SILENT:
            on_event(Progress(phase, len(found), len(items), unit))
    return found
