"""Several processes that share one job, as torchrun starts them; a process by itself is the leader.

    torchrun --standalone --nproc-per-node 8 -m dreamkd.cli invert resnet50

Nothing here is about images: the leader decides and tells, each process does its share, and all of
them come to the same end. torch is imported once several processes join, for the command line asks
who it is before it knows whether torch is needed.

What the processes say to each other goes over gloo, from the CPU; tensors on GPUs over NCCL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dreamkd.errors import ConfigError, Stopped, said
from dreamkd.events import Event, Hint, OnEvent, ignore
from dreamkd.rendezvous import meet

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """The processes of a job, and which of them this one is."""

    rank: int = 0  # 0 is the leader
    world_size: int = 1
    local_rank: int = 0  # among those of this machine
    local_world_size: int = 1  # how many those are

    @classmethod
    def of_environment(cls) -> Workers:
        """As torchrun's variables say; alone where it did not start this process.

        Raises: ConfigError: one of them is no number or no port, or they do not go together.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {*names, "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            return cls()
        values = {name: os.environ[name] for name in (*names, "MASTER_PORT")}
        wrong = [name for name, value in values.items() if not value.isdecimal()]
        if not wrong and int(values["RANK"]) >= int(values["WORLD_SIZE"]):
            wrong = ["RANK", "WORLD_SIZE"]
        if wrong:
            given = ", ".join(f"{name}={values[name]}" for name in wrong)
            raise ConfigError(f"{given}: not as torchrun sets it; unset RANK to run one process")
        if int(values["MASTER_PORT"]) not in range(1, 1 << 16):
            raise ConfigError(
                f"MASTER_PORT={values['MASTER_PORT']}: a port is 1..65535; "
                "choose a free one, or unset RANK to run one process"
            )
        local = os.environ.get("LOCAL_WORLD_SIZE", "")  # other launchers leave it out
        rank, world, local_rank = (int(values[name]) for name in names)
        return cls(rank, world, local_rank, int(local) if local.isdecimal() else 1)

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides, and that speaks to the user."""
        return self.rank == 0

    @contextmanager
    def joined(self, on_event: OnEvent = ignore) -> Iterator[None]:
        """Hold the processes connected while the block lasts.

        Args: on_event: hears whom this one waits for, if that takes long.
        Raises: ConfigError: the others do not come, or are not reached; nothing was created.
        """
        if self.world_size == 1:
            yield
            return
        from torch import distributed

        if distributed.is_initialized():
            raise ConfigError(
                "this process is in a group of torch.distributed already, and workers form one of "
                "their own: call it before init_process_group, or after destroy_process_group"
            )
        meet(self.rank, self.world_size, on_event)
        try:
            yield
        finally:
            distributed.destroy_process_group()

    @property
    def copies(self) -> int:
        """Of what each process holds: those for which this one looks whether there is memory.

        The first of a machine does so for all that run there, the others for themselves.
        """
        return self.local_world_size if self.local_rank == 0 else 1

    def device(self, leaders: str) -> str:
        """Where this one computes, if the leader does on `leaders`: each on a GPU of its own."""
        shared = self.world_size > 1 and leaders.startswith("cuda")
        return f"cuda:{self.local_rank}" if shared else leaders

    def require_own_devices(self, given: str) -> None:
        """Check that `--device` leaves each process a GPU of its own.

        Raises: ConfigError: it names one for all of them.
        """
        if self.world_size > 1 and given not in ("auto", "cpu", "cuda", "cuda:0"):
            raise ConfigError(f"--device {given}: each worker takes its own; leave it out")

    def hints_only(self, on_event: OnEvent) -> OnEvent:
        """What a worker has to say beside the leader."""

        def listen(event: Event) -> None:
            if isinstance(event, Hint):
                on_event(Hint(f"worker {self.rank}: {event.text}"))

        return listen

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of what all of them hold, dealt round robin."""
        return list(items[self.rank :: self.world_size])

    def part(self, count: int) -> slice:
        """This process's equal part of `count` things, a multiple of the processes."""
        each = count // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, which call this at the same time.

        All of them go in one message; afterwards they are the same to the bit everywhere.

        Args: tensors: of one device; on a GPU the host does not wait for the others.
        Raises: Stopped: a process is gone, as far as the host notices.
        """
        if self.world_size == 1:
            return
        import torch
        from torch import distributed

        whole = torch.cat([tensor.flatten() for tensor in tensors])
        with _missed():
            distributed.all_reduce(whole)
        parts = torch.split(whole / self.world_size, [tensor.numel() for tensor in tensors])
        means = [part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)]
        torch._foreach_copy_(list(tensors), means)

    def gather(self, rows: Tensor) -> Tensor:
        """The parts of all processes, in the order of `part`; all call this at the same time.

        Args: rows: (n, ...), of one shape in all of them.
        Raises: Stopped: a process is gone.
        """
        if self.world_size == 1:
            return rows
        from torch import distributed

        found = rows.new_empty((self.world_size * len(rows), *rows.shape[1:]))
        with _missed():
            distributed.all_gather_into_tensor(found, rows.contiguous())
        return found

    def any(self, value: bool) -> bool:
        """Whether any process says so; all call this at the same time.

        Raises: Stopped: a process is gone.
        """
        if self.world_size == 1:
            return value
        import torch
        from torch import distributed

        count = torch.tensor(int(value))
        with _missed():
            distributed.all_reduce(count)
        return bool(count)

    def barrier(self) -> None:
        """Wait until all processes call this.

        Raises: Stopped: a process is gone.
        """
        self.any(False)

    def broadcast(self, value: T | None = None) -> T:
        """What the leader called this with, in every process; the others wait for it.

        Raises: Stopped: the leader is gone.
        """
        box = [value]
        if self.world_size > 1:
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
        if self.world_size > 1:
            from torch import distributed

            found: list[Stopped | None] = [None] * self.world_size
            with _missed():
                distributed.all_gather_object(found, mine)
            mine = next(filter(None, [mine, *found]), None)
        if mine is not None:
            raise mine


#: The one process of a job that is not shared.
ALONE = Workers()


@contextmanager
def _missed() -> Iterator[None]:
    """A connection that breaks is mostly a worker that ended early, and has said why."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:  # of this one, which can say what to do
        raise
    except RuntimeError as error:  # whatever gloo or NCCL says of it
        raise Stopped(
            f"another worker failed, or is not reached ({said(error)}); unless it says why, what "
            "was finished is kept and the same command continues"
        ) from error
