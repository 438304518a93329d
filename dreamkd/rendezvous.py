"""How processes that torchrun starts find each other, and wait for each other."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from dreamkd.errors import ConfigError, said
from dreamkd.events import Hint, OnEvent

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # exported

#: A worker may wait for another as long as a batch takes, or a whole share.
_PATIENCE = timedelta(days=365)

#: How often this process has been connected with the others, as often as they with it.
_MET = 0

#: Seconds until it is said that others are missing, until they are given up, between two looks.
_SILENT, _LIMIT, _LOOK = 5.0, 600.0, 0.05


#: What torchrun sets for every process that it starts.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def torchrun_says() -> tuple[int, int, int, int] | None:
    """Rank, world size, rank and number of processes on this machine; None without torchrun.

    Raises: ConfigError: a variable of them is no number or no port, or they do not go together.
    """
    if not os.environ.keys() >= {*_VARIABLES}:
        return None
    values = {name: os.environ[name] for name in _VARIABLES if name != "MASTER_ADDR"}
    wrong = [name for name, value in values.items() if not value.isdecimal()]
    if not wrong and int(values["RANK"]) >= int(values["WORLD_SIZE"]):
        wrong = ["RANK", "WORLD_SIZE"]
    if wrong:
        given = ", ".join(f"{name}={values[name]}" for name in wrong)
        raise ConfigError(f"{given}: not as torchrun sets it; unset RANK to run one process")
    rank, world, local_rank, port = (int(value) for value in values.values())
    if port not in range(1, 1 << 16):
        raise ConfigError(
            f"MASTER_PORT={port}: a port is 1..65535; choose a free one, or unset RANK to run one "
            "process"
        )
    local = os.environ.get("LOCAL_WORLD_SIZE", "")  # other launchers leave it out
    return rank, world, local_rank, int(local) if local.isdecimal() else 1


def what_is_missing() -> str:
    """A line for a process that has others but not how to reach them; empty for any other."""
    count = os.environ.get("WORLD_SIZE", "")
    missing = [name for name in _VARIABLES if name not in os.environ]
    if not (missing and count.isdecimal() and int(count) > 1):
        return ""
    return f"WORLD_SIZE is {count}, but without {', '.join(missing)} this process works by itself"


def meet(rank: int, world: int, on_event: OnEvent) -> Store:
    """Connect this process with the others of its job, as torchrun's variables say where.

    Args:
        rank, world: which of how many it is.
        on_event: hears whom it waits for, if that takes long.
    Returns: what they share while they are connected, of this connection alone.
    Raises: ConfigError: the others do not come, or torch cannot connect them.
    """
    # Functions there keep as a default the group that exists when they are imported: later, as by
    # torch's compiler, it would be this one, whose threads may abort a process at its end.
    import torch.distributed.nn  # noqa: F401

    return _Meeting(rank, world).wait(on_event)


def wait_for(exchange: Callable[[], object]) -> None:
    """Let an exchange with the others end, beside the main thread, which hears signals meanwhile.

    Raises: what the exchange raises.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            exchange()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)  # it ends with the process
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK)
    if failed:
        raise failed[0]


class _Meeting(threading.Thread):
    """How processes find each other: as torch does it, but beside the main thread.

    No handler of Python runs while torch waits, so Ctrl-C and SIGTERM are heard in the main thread.
    """

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(daemon=True)  # it ends with the process, wherever it waits
        self._rank, self._world = rank, world
        self._place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self._missing = "the leader"
        self._error: Exception | None = None
        self._left = False  # nobody waits for it any more
        self._store: Store | None = None  # once all are connected

    def wait(self, on_event: OnEvent) -> Store:
        """Return once all are connected.

        Raises: ConfigError: they do not come, or torch cannot connect them.
        """
        began, told, fact = time.monotonic(), False, ""
        place = "{}:{}".format(*self._place)
        self.start()
        try:
            while self.is_alive() and not fact:
                self.join(_LOOK)
                waited = time.monotonic() - began
                if waited > _LIMIT:
                    fact = f"no sign of {self._missing} in {waited:.0f} s"
                elif waited > _SILENT and not told:
                    told = True
                    on_event(Hint(f"worker {self._rank}: waiting for {self._missing} at {place}"))
        finally:
            self._left = True
        if self._error:
            fact = said(self._error)
        if fact:
            raise ConfigError(
                f"RANK={self._rank} of WORLD_SIZE={self._world} at {place}: {fact}; "
                "start all with torchrun, on a free port, or unset RANK to run one process"
            ) from self._error
        assert self._store is not None
        store, self._store = self._store, None
        return store

    def run(self) -> None:
        """Connect them, in the thread."""
        try:
            while not self._left and not (self._answers() and self._connected()):
                time.sleep(_LOOK)
        except Exception as error:  # whatever torch and gloo say of it
            self._error = error

    def _connected(self) -> bool:
        """Connect with the others once all are there; false if the leader leaves before."""
        import torch
        from torch import distributed
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # exported

        global _MET
        others = self._world - 1
        self._missing = f"{others} worker{'s' * (others > 1)}"
        # An agent of torchrun keeps its store, and what earlier calls and processes left there.
        name = f"dreamkd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_MET}"
        store = PrefixStore(
            name,
            TCPStore(
                *self._place,
                world_size=self._world,
                is_master=self._hosts,
                timeout=_PATIENCE,
                wait_for_workers=False,
                multi_tenant=True,
            ),
        )
        here = [f"here/{rank}" for rank in range(self._world)]
        try:
            store.set(here[self._rank], "")
            while not store.check(here):
                if self._left:
                    return False
                time.sleep(_LOOK)
        except distributed.DistNetworkError as error:
            self._missing = f"the leader ({said(error)})"
            return False
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        with _to_stderr():
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=store,
                rank=self._rank,
                world_size=self._world,
                timeout=_PATIENCE,
            )
        self._store = store
        _MET += 1
        return True

    @property
    def _hosts(self) -> bool:
        """Whether this one holds the port: the leader, where no agent of torchrun does for all."""
        return self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def _answers(self) -> bool:
        """Whether the leader can be reached; torch would try as long, with a warning each time."""
        try:
            if self._hosts:  # it must know its name
                socket.getaddrinfo(*self._place)
            else:
                socket.create_connection(self._place, timeout=1.0).close()
        except (OSError, UnicodeError) as error:
            self._missing = f"the leader ({said(error)})"
            return False
        return True


@contextmanager
def _to_stderr() -> Iterator[None]:
    """What is written to stdout, also by C++, goes to stderr: there gloo tells of its peers."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
