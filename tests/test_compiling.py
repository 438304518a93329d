"""The compiled step: one graph, the same numbers; and what happens without a compiler."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config as functorch

from dreamkd.batch import Batch
from dreamkd.batchnorm import Call, Layer, trace
from dreamkd.config import settle
from dreamkd.engine import Runtime, Work, compile_step, worth_compiling
from dreamkd.events import Event, Hint
from dreamkd.models import Classifier
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from dreamkd.training import Training
from tests.conftest import distill_config
from tests.test_training import examples, fresh

LABELS = torch.arange(20) % 10


def synthesise(
    teacher: Classifier, events: list[Event], *, compiled: bool, **given: Any
) -> list[Batch]:
    config = settle(
        distill_config(image_steps=5, image_chunk=20, r_feature=1, **given),
        input_size=(1, 16, 16),
    )
    objective = Objective(
        Networks(teacher),
        config,
        runtime=Runtime.settle(config),
        compiled=compiled,
        on_event=events.append,
    )
    with Synthesiser(objective) as synthesiser:
        return [synthesiser.batch(LABELS, generator=generator_for(0, k)) for k in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "rel", "levels"),
    [
        ({"recipe": "adaptive"}, 1e-3, 0.5),
        # Through a generator differences grow from step to step, and from batch to batch.
        ({"recipe": "generator", "refine_steps": 5, "refine_r_feature": 0.1}, 0.05, 8),
        ({"recipe": "adaptive", "jitter_border": "black"}, 1e-3, 0.5),
        ({"recipe": "adaptive", "jitter_border": "mirror"}, 1e-3, 0.5),
    ],
    ids=["pixels", "generator and pixels", "black border", "mirrored border"],
)
def test_the_compiled_image_step_is_one_graph_with_the_same_numbers(
    digits: Classifier, given: dict[str, Any], rel: float, levels: float
) -> None:
    torch._dynamo.reset()  # else a graph of another test may serve
    torch._dynamo.utils.counters.clear()
    events: list[Event] = []
    eager = synthesise(digits, events, compiled=False, **given)
    compiled = synthesise(digits, events, compiled=True, **given)
    assert events == []  # no fallback
    # For both batches, whatever is averaged or weighted how.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    compared = eager[:1] if "refine_steps" in given else eager
    for a, b in zip(compared, compiled, strict=False):
        assert b.terms == pytest.approx(a.terms, rel=rel)
        assert (a.images.int() - b.images.int()).abs().float().mean() < levels


def train(teacher: Classifier, events: list[Event], *, compile_: str) -> list[float]:
    config = settle(distill_config(compile=compile_, steps=4), input_size=(1, 16, 16))
    seen: list[float] = []
    with Training(
        fresh(), teacher, config, runtime=Runtime.settle(config), on_event=events.append
    ) as training:
        for until in range(1, 5):
            training.advance(examples(), until=until, on_step=lambda _, t: seen.append(t["kd"]))
    return seen


@pytest.mark.slow
def test_the_compiled_student_step_is_one_graph_with_the_same_numbers(digits: Classifier) -> None:
    torch._dynamo.reset()  # else a graph of another test may serve
    torch._dynamo.utils.counters.clear()
    events: list[Event] = []
    eager = train(digits, events, compile_="off")
    compiled = train(digits, events, compile_="on")
    assert events == []
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_a_machine_without_a_compiler_goes_on_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch._inductor.exc.InductorError(RuntimeError("no compiler"), None)

    def broken(function: object, **_: object) -> object:
        return fail

    monkeypatch.setattr(torch, "compile", broken)
    events: list[Event] = []
    step = compile_step(lambda x: x + 1, on_event=events.append)
    assert step(1) == 2
    assert step(2) == 3
    (hint,) = events
    assert isinstance(hint, Hint)
    assert hint.text.startswith("running without torch.compile: ")


@pytest.mark.skipif(
    not hasattr(functorch, "force_non_lazy_backward_lowering"), reason="this torch cannot be told"
)
def test_a_backward_pass_that_does_not_compile_is_eager_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise torch._inductor.exc.InductorError(RuntimeError("no such kernel"), None)

    torch._dynamo.reset()
    half = aot_autograd(fw_compiler=lambda graph, _: graph.forward, bw_compiler=fail)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=half))
    events: list[Event] = []
    step, x = compile_step(torch.sin, on_event=events.append), torch.ones(3, requires_grad=True)
    assert torch.equal(*torch.autograd.grad(step(x).sum(), x), torch.ones(3).cos())
    assert [type(event) for event in events] == [Hint]


def test_there_may_be_many_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts them together, since each step is a partial, and gives up after eight."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    events: list[Event] = []
    for k in range(12):
        step = compile_step(partial(torch.add, torch.ones(k + 1)), on_event=events.append)
        assert step(torch.ones(k + 1)).sum() == 2 * (k + 1)
    assert events == []


def test_errors_of_the_step_itself_are_not_taken_for_the_compilers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)

    def step(x: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compile_step(step, on_event=lambda event: None)(1)


def test_short_jobs_are_not_compiled(digits: Classifier) -> None:
    calls = trace(digits.module, torch.zeros(1, 1, 16, 16))
    assert not worth_compiling(calls, Work(100 * 128, 1), device="cpu")
    assert worth_compiling(calls, Work(10**7, 1), device="cpu")
    assert not worth_compiling(calls, Work(10**7, 1000), device="cpu")
    big = [Call(Layer("", torch.nn.BatchNorm2d(1)), (1, 64, 112, 112))] * 50
    assert worth_compiling(big, Work(84 * 600, 1), device="cpu")
    assert not worth_compiling(big, Work(84 * 600, 1), device="cuda:0")
    assert worth_compiling(big, Work(84 * 60000, 1), device="cuda:0")
    # A job that fills a given time: a fifth of it pays for 15 s and one for each of the layers.
    enough = 5 * 3 * (15 + len(calls))
    assert worth_compiling(calls, Work(1, 3, enough), device="cpu")
    assert not worth_compiling(calls, Work(10**7, 3, enough - 1), device="cpu")


@pytest.mark.slow
def test_what_was_compiled_is_found_by_the_next_process(tmp_path: Path) -> None:
    """Unless its backward pass is another."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = [
        subprocess.run(
            [sys.executable, "-c", _COMPILES_A_FUNCTION, factor],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.split()
        for factor in ("2", "2", "3")
    ]
    assert found == [["2.0", "missed"], ["2.0", "found"], ["3.0", "missed"]]


_COMPILES_A_FUNCTION = """
import sys
import torch
from dreamkd.engine import compile_step

class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos() * float(sys.argv[1])

x = torch.zeros(8, requires_grad=True)
compile_step(lambda x: Scaled.apply(x).sum(), on_event=print)(x).backward()
found = torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
print(float(x.grad[0]), "found" if found else "missed")
"""
