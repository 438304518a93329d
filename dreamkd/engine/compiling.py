"""torch.compile where it pays, eager where it does not or cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch._functorch import config as functorch

from dreamkd.batchnorm import Call
from dreamkd.errors import said
from dreamkd.events import Hint, OnEvent

Step = TypeVar("Step", bound=Callable[..., Any])

#: Graphs of one step, by sizes of its batch, stages and kinds of view. torch counts those of all
#: steps together, and gives up after eight.
_MOST_GRAPHS = 256

#: Settings that torch does not promise. It keeps graphs with an `autograd.Function` between runs
#: only if told to, although the code of both passes is part of the key; and compiles the backward
#: pass when it is first needed, where no fallback is.
_SETTINGS = ("autograd_cache_allow_custom_autograd_functions", "force_non_lazy_backward_lowering")


class Work(NamedTuple):
    """What there is to compile in a job, and how often it is used."""

    image_steps: float  # images times steps, each as much of one as its resolution makes it
    graphs: int  # steps of different form
    seconds: float | None = None  # that the job is given; then its steps follow from them


def worth_compiling(calls: Sequence[Call], work: Work, *, device: str) -> bool:
    """Whether compiling earns its time back, by a rule that needs no clock.

    A rule, not a timing: the decision must be the same in every run of the same command. Measured
    on two CPU cores, with nothing cached: compiling a graph costs about 15 s and another for each
    batch-norm layer, and saves about 6 ns per element that flows into one. On CUDA, where a step is
    launched as one graph either way if there is room, it saves memory traffic, by an estimate
    0.03 ns per element. A job that fills a given time is compiled where that costs it no more than
    a fifth.

    Args:
        calls: the batch-norm calls of a forward pass on one image, of all networks of a step.
        device: where it is computed.
    """
    cost = work.graphs * (15 + len(calls))
    if work.seconds is not None:
        return work.seconds >= 5 * cost
    elements = sum(math.prod(call.shape) for call in calls)
    return work.image_steps * elements * (6e-9 if device == "cpu" else 3e-11) > cost


def compile_step(function: Step, *, on_event: OnEvent) -> Step:
    """`function` compiled into one graph; eager, with a hint, on a machine that cannot compile."""
    call = torch.compile(function, fullgraph=True, dynamic=False)
    settings = functorch.patch({name: True for name in _SETTINGS if hasattr(functorch, name)})
    limit = torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS)

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal call
        try:
            with settings, limit:
                return call(*args, **kwargs)
        except Exception as error:
            # No compiler, an unsupported operation: torch has no common class for these.
            if call is function or not _is_compiler_error(error):
                raise
            on_event(Hint(f"running without torch.compile: {said(error)}"))
            call = function
            return function(*args, **kwargs)

    return step  # type: ignore[return-value]


def _is_compiler_error(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
