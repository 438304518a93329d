"""CUDA graphs: a step that is launched as a whole.

A step is some hundred small kernels, and launching them one by one takes the host longer than the
GPU computes. Recorded once, they are launched together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dreamkd.engine.memory import spare_bytes
from dreamkd.errors import said
from dreamkd.events import Hint, OnEvent

Outputs = TypeVar("Outputs")

#: Calls before a recording: they compile, choose kernels and set up libraries, and do their work.
WARM_UP = 3

#: Kinds of inputs that are recorded; a job has a few resolutions and a smaller last batch.
_KINDS = 8


@dataclass(eq=False)
class _Recording(Generic[Outputs]):
    """Kernels that read `inputs` and write `outputs`, always in the same memory."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Outputs
    seen: list[tuple[Tensor, int]]  # what the inputs were copied from, and its version
    device: torch.device
    size: int  # bytes that it keeps


@dataclass
class _Kind:
    """Of inputs, before their recording."""

    calls: int = 0
    size: int = 0  # bytes that a call took


#: Devices on which a recording failed: of some versions of torch the next one would fail for that.
_failed: set[torch.device] = set()

_alive: WeakSet[_Recording[Any]] = WeakSet()
_streams: dict[torch.device, torch.cuda.Stream] = {}


class Replay(Generic[Outputs]):
    """`step` on a CUDA device: called as it is at first, then recorded, then replayed.

    What it returns is overwritten by its next call. The step must not wait for the GPU and must do
    its work on tensors alone: what Python does in it is done once. Its inputs must not be what
    another `Replay` returned.

    A step that cannot be recorded is called as it is, and so is one for which there is no room: all
    recordings on a device together keep at most `spare_bytes`.
    """

    def __init__(self, step: Callable[..., Outputs], *, device: str, on_event: OnEvent) -> None:
        self._step = step
        self._device = torch.device(device)
        self._on_event = on_event
        self._kinds: dict[Hashable, _Kind] = {}
        self._recordings: dict[Hashable, _Recording[Outputs]] = {}
        self._refused = False  # any further recording

    def __call__(self, *inputs: Any) -> Outputs:
        """As `step`; tensors in `inputs`, however nested, may change from call to call."""
        if self._refused and not self._recordings:
            return self._step(*inputs)
        leaves, structure = tree_flatten(inputs)
        key = tuple(map(_fact, leaves)), _hashable(structure)
        recording = self._recordings.get(key)
        if recording is None:
            kind = self._kind(key)
            if kind is None or self._refused or self._device in _failed:
                return self._step(*inputs)
            if kind.calls < WARM_UP:
                return self._warm_up(kind, inputs)
            placed = {id(leaf): leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)}
            own = [placed.get(id(leaf), leaf) for leaf in leaves]
            recording = self._record(tree_unflatten(own, structure), leaves, own, kind.size)
            if recording is None:
                return self._step(*inputs)
            self._recordings[key] = recording
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for i, (place, tensor) in enumerate(zip(recording.inputs, tensors, strict=True)):
            known, version = recording.seen[i]
            if tensor is not known or tensor._version != version:
                place.copy_(tensor, non_blocking=True)
                recording.seen[i] = tensor, tensor._version
        recording.graph.replay()
        return recording.outputs

    def _kind(self, key: Hashable) -> _Kind | None:
        """What is known of such inputs; None of one kind too many."""
        if len(self._kinds) < _KINDS:
            return self._kinds.setdefault(key, _Kind())
        return self._kinds.get(key)

    def _warm_up(self, kind: _Kind, inputs: tuple[Any, ...]) -> Outputs:
        """Call the step as it is, and see what a recording would keep and whether it can be."""
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        kind.calls += 1
        if kind.calls < WARM_UP:
            outputs = self._step(*inputs)
        else:
            with _waits() as waited:
                outputs = self._step(*inputs)
            if waited:
                self._refuse("a step waits for the GPU")
        kind.size = torch.cuda.max_memory_allocated(self._device) - before
        kept = sum(recording.size for recording in _alive if recording.device == self._device)
        ready = kind.calls == WARM_UP  # the first calls also hold what compiles and chooses kernels
        if ready and kept + kind.size > spare_bytes(str(self._device)):
            self._refuse("there is too little room beside what is computed")
        return outputs

    def _record(
        self, inputs: Any, given: list[Any], own: list[Any], size: int
    ) -> _Recording[Outputs] | None:
        """A recording of the step on `inputs`, or None where torch cannot make one."""
        device, graph, reason = self._device, torch.cuda.CUDAGraph(), ""
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        try:
            # The outer one puts the stream back also where the recording fails.
            with (
                torch.cuda.device(device),
                torch.cuda.stream(torch.cuda.current_stream(device)),
                torch.cuda.graph(graph, stream=_streams[device]),
            ):
                outputs = self._step(*inputs)
        except RuntimeError as error:  # of CUDA, of memory, of what the network does
            cause = error.__context__ or error  # what broke it, and not that it is broken
            reason = said(cause)
            del cause
        if reason:  # outside of the handler, whose traceback keeps the tensors of the step alive
            with suppress(RuntimeError):  # of a graph that was not even begun
                graph.reset()
            _failed.add(device)
            self._refuse(reason)
            return None
        seen = [(leaf, leaf._version) for leaf in given if isinstance(leaf, Tensor)]
        places = [leaf for leaf in own if isinstance(leaf, Tensor)]
        recording = _Recording(graph, places, outputs, seen, device, size)
        _alive.add(recording)
        return recording

    def _refuse(self, reason: str) -> None:
        if not self._refused:
            self._on_event(Hint(f"running without CUDA graphs: {reason}"))
        self._refused = True


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Collects what makes the host wait for the GPU while the block lasts."""
    found: list[str] = []
    others: list[warnings.WarningMessage] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
        for one in heard:
            if "synchronizing CUDA" in str(one.message):
                found.append(str(one.message))
            elif "Synchronization debug mode" not in str(one.message):
                others.append(one)
    for one in others:  # not ours to keep
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _fact(leaf: Any) -> Hashable:
    """What of an input a recording is for: everything but the values of tensors."""
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _hashable(structure: Any) -> Hashable:
    """The structure itself, or where torch's has no hash its text."""
    try:
        hash(structure)
    except TypeError:
        return str(structure)
    found: Hashable = structure
    return found
