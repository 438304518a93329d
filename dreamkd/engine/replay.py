"""CUDA graphs: a step that is launched as a whole.

A step is some hundred small kernels, and launching them one by one takes the host longer than the
GPU computes. Recorded once, they are launched together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from dreamkd.events import Hint, OnEvent

Outputs = TypeVar("Outputs")

#: Calls before a recording: they compile, choose kernels and set up libraries, and do their work.
WARM_UP = 3

#: The largest part of the GPU's memory that a recorded step may keep for itself.
_PART = 0.25

#: Kinds of inputs that are recorded; a job has a few resolutions and a smaller last batch.
_KINDS = 8


@dataclass
class _Recording(Generic[Outputs]):
    """Kernels that read `inputs` and write `outputs`, always in the same memory."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Outputs
    seen: list[tuple[Tensor, int]]  # what the inputs were copied from, and its version


class Replay(Generic[Outputs]):
    """`step` on a CUDA device: called as it is at first, then recorded, then replayed.

    What it returns is overwritten by its next call. The step must not wait for the GPU and must do
    its work on tensors alone: what Python does in it is done once.

    A step that cannot be recorded, or needs much of the memory, is called as it is.
    """

    def __init__(self, step: Callable[..., Outputs], *, device: str, on_event: OnEvent) -> None:
        self._step = step
        self._device = torch.device(device)
        self._on_event = on_event
        self._calls: dict[Any, int] = {}  # of each kind of inputs, before its recording
        self._recordings: dict[Any, _Recording[Outputs]] = {}
        self._refused = False

    def __call__(self, *inputs: Any) -> Outputs:
        """As `step`; tensors in `inputs`, however nested, may change from call to call."""
        leaves, structure = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kind = _kind(leaves, structure)
        if kind not in self._recordings and not self._try(kind, leaves, structure):
            return self._watched(kind, inputs)
        recording = self._recordings[kind]
        for i, (place, tensor) in enumerate(zip(recording.inputs, tensors, strict=True)):
            known, version = recording.seen[i]
            if tensor is not known or tensor._version != version:
                place.copy_(tensor, non_blocking=True)
                recording.seen[i] = tensor, tensor._version
        recording.graph.replay()
        return recording.outputs

    def _watched(self, kind: Any, inputs: tuple[Any, ...]) -> Outputs:
        """Call the step as it is, and see how much memory it takes."""
        if self._refused or len(self._calls) > _KINDS:
            return self._step(*inputs)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        outputs = self._step(*inputs)
        taken = torch.cuda.max_memory_allocated(self._device) - before
        total = torch.cuda.get_device_properties(self._device).total_memory
        self._refused = taken > _PART * total
        self._calls[kind] = self._calls.get(kind, 0) + 1
        return outputs

    def _try(self, kind: Any, leaves: list[Any], structure: TreeSpec) -> bool:
        """Record the step if it is time; whether it is recorded."""
        if self._refused or self._calls.get(kind, 0) < WARM_UP:
            return False
        placed = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph):
                outputs = self._step(*tree_unflatten(placed, structure))
        except RuntimeError as error:  # of CUDA, of memory, of what the network does
            self._refused = True
            reason = str(error).strip().splitlines()[0][:160]
            self._on_event(Hint(f"running without CUDA graphs: {reason}"))
            return False
        inputs = [leaf for leaf in placed if isinstance(leaf, Tensor)]
        seen = [(leaf, leaf._version) for leaf in leaves if isinstance(leaf, Tensor)]
        self._recordings[kind] = _Recording(graph, inputs, outputs, seen)
        return True


def _kind(leaves: list[Any], structure: TreeSpec) -> Any:
    """What a recording is for: everything about the inputs but the values of tensors."""
    facts = [
        (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
    return tuple(facts), str(structure)
