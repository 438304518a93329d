"""Several processes that share one job, as torchrun starts them; a process by itself is the leader.

    torchrun --standalone --nproc-per-node 8 -m dreamkd.cli invert resnet50

Nothing here is about images: the leader decides and tells, each process does its share, and all of
them come to the same end. torch is imported once several processes join, for the command line asks
who it is before it knows whether torch is needed.

What the processes say to each other goes over gloo, from the CPU; tensors on GPUs over NCCL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dreamkd.errors import ConfigError, DreamkdError, RunError, Stopped, said
from dreamkd.events import Event, Hint, OnEvent, ignore
from dreamkd.rendezvous import meet, torchrun_says, wait_for, what_is_missing
from dreamkd.stopbell import StopBell

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass
class _Talk:
    """What was said between processes that are connected."""

    begun: bool = False  # the leader has told what there is to do
    bell: StopBell | None = None  # while they are connected


@dataclass(frozen=True)
class _Refusal:
    """Told instead of what there is to do."""

    error: DreamkdError


@dataclass(frozen=True)
class Workers:
    """The processes of a job, and which of them this one is."""

    rank: int = 0  # 0 is the leader
    world_size: int = 1
    local_rank: int = 0  # among those of this machine
    local_world_size: int = 1  # how many those are
    _talk: _Talk = field(default_factory=_Talk, compare=False, repr=False)

    @classmethod
    def of_environment(cls) -> Workers:
        """As torchrun's variables say; alone where it did not start this process.

        Raises: ConfigError: one of them is no number or no port, or they do not go together.
        """
        told = torchrun_says()
        return cls() if told is None else cls(*told)

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides, and that speaks to the user."""
        return self.rank == 0

    @contextmanager
    def joined(self, on_event: OnEvent = ignore) -> Iterator[None]:
        """Hold the processes connected while the block lasts.

        What the leader refuses before it has told what there is to do, all refuse.

        Args: on_event: hears whom this one waits for, if that takes long.
        Raises: ConfigError: the others do not come, or are not reached; nothing was created.
        """
        if self.world_size == 1:
            if hint := what_is_missing():
                on_event(Hint(hint))
            yield
            return
        from torch import distributed

        if distributed.is_initialized():
            raise ConfigError(
                "this process is in a group of torch.distributed already, and workers form one of "
                "their own: call it before init_process_group, or after destroy_process_group"
            )
        bell = self._talk.bell = StopBell(meet(self.rank, self.world_size, on_event))
        try:
            yield
        except BaseException as error:
            if self.leads and not self._talk.begun and isinstance(error, DreamkdError):
                with suppress(Stopped):  # one is gone, which says why
                    self.broadcast(_Refusal(error))
                    self.barrier()  # they have heard it before the connection ends
            bell.ring()  # the others may have long shares left
            raise
        finally:
            self._talk.bell = None
            bell.close()
            distributed.destroy_process_group()

    @property
    def copies(self) -> int:
        """Of what each process holds: those for which this one looks whether there is memory.

        The first of a machine does so for all that run there, the others for themselves.
        """
        return self.local_world_size if self.local_rank == 0 else 1

    def device(self, leaders: str) -> str:
        """Where this one computes, if the leader does on `leaders`: each on a GPU of its own."""
        if self.world_size == 1 or not leaders.startswith("cuda"):
            return leaders
        import torch

        # Some launchers show each process its own GPU alone, which is then the first.
        return f"cuda:{self.local_rank if torch.cuda.device_count() > 1 else 0}"

    def require_own_devices(self, given: str) -> None:
        """Check that `--device` leaves each process a GPU of its own.

        Raises: ConfigError: it names one for all of them.
        """
        if self.world_size > 1 and given not in ("auto", "cpu", "cuda", "cuda:0"):
            raise ConfigError(f"--device {given}: each worker takes its own; leave it out")

    def require_same(self, mine: Mapping[str, Any], leaders: Mapping[str, Any]) -> None:
        """Check that this process was given what the leader was.

        Raises: RunError: it was not, in one of the facts of `mine`.
        """
        if others := [name for name, value in mine.items() if leaders[name] != value]:
            raise RunError(f"worker {self.rank}: {', '.join(others)} differ from the leader's")

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
        _exchange(whole, lambda: distributed.all_reduce(whole))
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
        _exchange(found, lambda: distributed.all_gather_into_tensor(found, rows.contiguous()))
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
        _exchange(count, lambda: distributed.all_reduce(count))
        return bool(count)

    def barrier(self) -> None:
        """Wait until all processes call this.

        Raises: Stopped: a process is gone.
        """
        self.any(False)

    def hears_stop(self, asked: bool) -> bool:
        """Whether this process is asked to stop, or another was; the others are not waited for.

        Each calls this as often as it likes, and hears of the others within a second.

        Raises: Stopped: the leader is gone.
        """
        bell = self._talk.bell
        if bell is None:
            return asked
        if asked:
            bell.ring()
        with _missed():
            return bell.heard()

    def broadcast(self, value: T | None = None) -> T:
        """What the leader called this with, in every process; the others wait for it.

        Raises: Stopped: the leader is gone.
        """
        box: list[Any] = [value]
        if self.world_size > 1:
            from torch import distributed

            self._talk.begun = True
            with _missed():
                wait_for(lambda: distributed.broadcast_object_list(box, src=0))
        if isinstance(box[0], _Refusal) and not self.leads:
            self.barrier()
            box[0].error.told = True
            raise box[0].error
        return box[0]  # type: ignore[no-any-return]  # the leader gave a value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block when all do; where one was stopped, all are, and the leader says so.

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
                wait_for(lambda: distributed.all_gather_object(found, mine))
            mine = next(filter(None, [mine, *found]), None)
        if mine is not None:
            mine.told = not self.leads
            raise mine


#: Where in gloo's sources it says what it says.
_SOURCE = re.compile(r"^\[[^\]]*\] *")

#: The one process of a job that is not shared.
ALONE = Workers()


def _exchange(tensor: Tensor, collective: Callable[[], object]) -> None:
    """Run a collective on a tensor; on the CPU signals are heard meanwhile.

    Raises: Stopped: a process is gone, as far as the host notices.
    """
    with _missed():
        if tensor.device.type == "cpu":
            wait_for(collective)
        else:  # the host does not wait; and the stream is this thread's
            collective()


@contextmanager
def _missed() -> Iterator[None]:
    """A connection that breaks is mostly a worker that ended early, and has said why."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:  # of this one, which can say what to do
        raise
    except RuntimeError as error:  # whatever gloo, NCCL or the store say of it
        raise Stopped(
            "another worker has ended, or is not reached; unless it says why, what was finished is "
            f"kept and the same command continues ({_SOURCE.sub('', said(error))})"
        ) from error
