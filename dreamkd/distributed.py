"""Several processes that share one job, as torchrun starts them; a process by itself is the leader.

    torchrun --standalone --nproc-per-node 8 -m dreamkd.cli invert resnet50

Nothing here is about images: the leader decides and tells, each process does its share, and all of
them come to the same end. torch is imported once several processes join, for the command line asks
who it is before it knows whether torch is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from dreamkd.errors import Stopped

T = TypeVar("T")

#: A worker may wait for another as long as a batch takes, or a whole share.
_PATIENCE = timedelta(days=365)


@dataclass(frozen=True)
class Workers:
    """The processes of a job, and which of them this one is."""

    rank: int = 0  # 0 is the leader
    world: int = 1
    local_rank: int = 0  # among those of this machine

    @classmethod
    def of_environment(cls) -> Workers:
        """As torchrun's variables say; alone where it did not start this process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {*names, "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides, and that speaks to the user."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Hold the processes connected while the block lasts."""
        if self.world == 1:
            yield
            return
        from torch import distributed

        distributed.init_process_group(
            "gloo", rank=self.rank, world_size=self.world, timeout=_PATIENCE
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def device(self, leaders: str) -> str:
        """Where this one computes, if the leader does on `leaders`: each on a GPU of its own."""
        return f"cuda:{self.local_rank}" if leaders.startswith("cuda") else leaders

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what all of them hold, dealt round robin."""
        return list(items[self.rank :: self.world])

    def told(self, value: T | None = None) -> T:
        """What the leader called this with, in every process; the others wait for it.

        Raises: Stopped: the leader is gone.
        """
        box = [value]
        if self.world > 1:
            from torch import distributed

            with _missed():
                distributed.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]  # the leader gave a value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when all do; where one was stopped, all are.

        Raises: Stopped: one was, or one is gone.
        """
        mine = None
        try:
            yield
        except Stopped as stopped:
            mine = stopped
        if self.world > 1:
            from torch import distributed

            found: list[Stopped | None] = [None] * self.world
            with _missed():
                distributed.all_gather_object(found, mine)
            mine = next(filter(None, [mine, *found]), None)
        if mine is not None:
            raise mine


@contextmanager
def _missed() -> Iterator[None]:
    """A connection that breaks is a worker that ended early, and has said why."""
    try:
        yield
    except RuntimeError as error:  # whatever gloo says of it
        raise Stopped(
            "another worker failed; what was finished is kept; the same command continues"
        ) from error
