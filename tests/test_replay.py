"""When a step is recorded, and what is copied into a recording; the device is made up."""

import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamkd.engine import replay
from dreamkd.engine.replay import WARM_UP, Replay
from dreamkd.events import Event

ROOM = 100


class Step:
    """x * factor, of which a recording works on the tensors it was made with."""

    def __init__(self, *, waits: bool = False, fails: bool = False) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.waits, self.fails, self.recording = waits, fails, False

    def __call__(self, x: Tensor, given: tuple[Tensor, float]) -> Tensor:
        if self.waits:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        if self.fails and self.recording:
            made = x * given[0]
            self.lost = weakref.ref(made)
            raise RuntimeError("not while a stream is captured")
        self.calls.append((x, given[0]))
        self.out = x * given[0] * given[1]
        return self.out


@pytest.fixture
def step() -> Step:
    return Step()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> SimpleNamespace:
    """Stands in for `torch.cuda`; `taken` is what a call of a step takes."""
    made = SimpleNamespace(taken=10, mode=0, step=None, resets=0)

    class Graph:
        def reset(self) -> None:
            made.resets += 1

        def replay(self) -> None:
            x, factor = self.inputs
            self.out.copy_(x * factor * 2.0)

    @contextmanager
    def record(graph: Any, stream: Any) -> Iterator[None]:
        made.step.recording = True
        try:
            yield
        finally:
            made.step.recording = False
        graph.inputs, graph.out = made.step.calls[-1], made.step.out

    fake = SimpleNamespace(
        CUDAGraph=Graph,
        Stream=lambda device: None,
        current_stream=lambda device: None,
        device=lambda device: nullcontext(),
        get_sync_debug_mode=lambda: made.mode,
        graph=record,
        max_memory_allocated=lambda device: made.taken,
        memory_allocated=lambda device: 0,
        reset_peak_memory_stats=lambda device: None,
        set_sync_debug_mode=lambda mode: setattr(made, "mode", mode),
        stream=lambda stream: nullcontext(),
    )
    monkeypatch.setattr(replay.torch, "cuda", fake)
    monkeypatch.setattr(replay, "spare_bytes", lambda device: ROOM)
    monkeypatch.setattr(replay, "_failed", set())
    return made


def ask(wanted: Replay[Tensor], x: float, factor: Tensor, times: float = 2.0) -> None:
    """Call and check."""
    given = torch.full((2,), float(x))
    assert torch.equal(wanted(given, (factor, times)), given * factor * times)


def test_a_replay_computes_with_the_values_of_its_call(device: SimpleNamespace, step: Step) -> None:
    device.step, heard = step, list[Event]()
    wanted = Replay(step, device="cuda:0", on_event=heard.append)
    factor = torch.ones(2)
    for k in range(3 * WARM_UP):
        factor += 1  # the same tensor with other values
        ask(wanted, k, factor)
    assert len(step.calls) == WARM_UP + 1
    ask(wanted, 5.0, torch.full((2,), 7.0))  # another tensor
    assert len(step.calls) == WARM_UP + 1
    assert heard == []
    assert device.mode == 0


def test_another_kind_of_inputs_has_a_recording_of_its_own(
    device: SimpleNamespace, step: Step
) -> None:
    device.step = step
    wanted = Replay(step, device="cuda:0", on_event=lambda event: None)
    for _ in range(WARM_UP + 2):
        ask(wanted, 1.0, torch.ones(2))
    assert len(step.calls) == WARM_UP + 1
    for k in range(WARM_UP):
        ask(wanted, k, torch.ones(1))
    assert len(step.calls) == 2 * WARM_UP + 1
    ask(wanted, 3.0, torch.full((1,), 4.0))
    ask(wanted, 4.0, torch.full((1,), 5.0))
    assert len(step.calls) == 2 * WARM_UP + 2


@pytest.mark.parametrize(
    ("how", "reason"),
    [({"waits": True}, "waits for the GPU"), ({"fails": True}, "not while a stream is captured")],
)
def test_what_cannot_be_recorded_is_called_and_said_once(
    device: SimpleNamespace, how: dict[str, bool], reason: str
) -> None:
    device.step, heard = Step(**how), list[Event]()
    wanted = Replay(device.step, device="cuda:0", on_event=heard.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(3 * WARM_UP):
            ask(wanted, k, torch.ones(2))
    assert len(device.step.calls) == 3 * WARM_UP
    assert len(heard) == 1
    assert reason in str(heard[0])
    assert device.mode == 0


def test_a_recording_that_failed_keeps_nothing(device: SimpleNamespace) -> None:
    """No tensor of it, and no graph, lie in memory beside the step that is called instead."""
    device.step = Step(fails=True)
    wanted = Replay(device.step, device="cuda:0", on_event=lambda event: None)
    gc.disable()  # or it would hide what waits for it
    try:
        for k in range(WARM_UP + 1):
            ask(wanted, k, torch.ones(2))
        assert device.step.lost() is None
    finally:
        gc.enable()
    assert device.resets == 1


def test_after_a_recording_that_failed_no_other_is_tried(device: SimpleNamespace) -> None:
    for fails, calls in ((True, WARM_UP + 1), (False, 2 * WARM_UP)):
        device.step = Step(fails=fails)
        wanted = Replay(device.step, device="cuda:0", on_event=lambda event: None)
        for k in range(calls):
            ask(wanted, k, torch.ones(2))
        assert len(device.step.calls) == calls


def test_recordings_share_their_room(device: SimpleNamespace) -> None:
    device.taken = ROOM - 30
    heard, kept = [], []
    for _ in range(2):
        device.step = Step()
        kept.append(Replay(device.step, device="cuda:0", on_event=heard.append))
        for k in range(3 * WARM_UP):
            ask(kept[-1], k, torch.ones(2))
    assert len(device.step.calls) == 3 * WARM_UP  # the second one was not recorded
    assert len(heard) == 1
    assert "too little room" in str(heard[0])
    kept.clear()  # with it goes what it kept
    device.step = Step()
    last = Replay(device.step, device="cuda:0", on_event=heard.append)
    for k in range(3 * WARM_UP):
        ask(last, k, torch.ones(2))
    assert len(device.step.calls) == WARM_UP + 1
