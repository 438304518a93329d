"""Both workflows on a CUDA device: the same path, the same start, everything brought home."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkd import manifest, models
from dreamkd.config import settle
from dreamkd.distillation import distill
from dreamkd.engine import LOOK, Runtime, fixed
from dreamkd.engine.replay import WARM_UP, Replay
from dreamkd.events import Event, ignore
from dreamkd.examples import Examples
from dreamkd.inversion import invert
from dreamkd.models import Classifier
from dreamkd.networks import Networks, Own
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from dreamkd.training import Training
from tests.conftest import distill_config, invert_config
from tests.test_calibration import border_of, trained_with

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def waiting() -> Iterator[None]:
    """Whatever a test refuses is allowed again."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_invert_on_a_gpu(tmp_path: Path, precision: str) -> None:
    config = invert_config(
        out=str(tmp_path / "run"), device="cuda", precision=precision, image_steps=60
    )
    result = invert(config)
    assert result.images == 40
    assert result.teacher_top1 > 50
    assert len(manifest.read(tmp_path / "run" / "manifest.jsonl")) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("border", ["black", "mirror"])
def test_the_border_is_found_on_a_gpu(border: str, precision: str) -> None:
    network = trained_with(border)
    assert border_of(network, device="cuda", precision=precision, image_chunk=64)[0] == border


def test_deepdream_on_a_gpu(tmp_path: Path) -> None:
    config = invert_config(out=str(tmp_path / "run"), device="cuda", method="deepdream")
    assert invert(config).images == 40


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_distill_on_a_gpu(tmp_path: Path, precision: str) -> None:
    config = distill_config(
        out=str(tmp_path / "run"), device="cuda", precision=precision, eval_data="sklearn:digits"
    )
    result = distill(config)
    assert result.student_top1 is not None
    student = models.load(result.student)
    assert all(p.device.type == "cpu" for p in student.module.parameters())
    assert distill(config).student_top1 == result.student_top1  # finished: measured again


def test_a_step_of_images_does_not_wait_for_the_gpu(digits: Classifier) -> None:
    config = settle(
        invert_config(
            device="cuda", image_steps=2 * LOOK, crop=0.5, r_feature=1.0, bn_momentum=0.5
        ),
        input_size=digits.card.input_size,
    )
    config = replace(config, image_chunk=100)
    with Synthesiser.of(Networks(digits), config, runtime=Runtime.settle(config)) as synthesiser:
        for k in range(2):
            synthesiser.batch(
                torch.arange(20) % 10,
                generator=generator_for(0, "batch", k),
                on_step=lambda step, steps, terms: refuse_waiting(step),
            )


def test_a_step_of_a_student_does_not_wait_for_the_gpu(digits: Classifier) -> None:
    config = distill_config(device="cuda", steps=2 * LOOK, cutmix=1.0, hard_labels=0.5, ema=0.9)
    config = settle(config, input_size=digits.card.input_size)
    images = torch.zeros((40, *digits.card.input_size), dtype=torch.uint8)
    examples = Examples(images, torch.arange(40) % 10)
    for given in (examples, examples.near("cuda:0")):
        runtime = Runtime.settle(config)
        with Training(digits.copy(), digits, config, runtime=runtime) as training:
            training.advance(
                given, until=2 * LOOK, on_step=lambda step, terms: refuse_waiting(step)
            )


def refuse_waiting(step: int) -> None:
    """After a step: have torch refuse what makes the host wait in the next, unless it is seen."""
    allowed = step <= WARM_UP or step % LOOK in (0, LOOK - 1)
    torch.cuda.set_sync_debug_mode("default" if allowed else "error")


def test_what_is_replayed_is_what_is_computed() -> None:
    weight = torch.randn(3, device="cuda:0")
    calls: list[int] = []

    def step(x: torch.Tensor, pair: tuple[torch.Tensor, float]) -> tuple[torch.Tensor, int]:
        calls.append(len(calls))
        return x * pair[0] * pair[1] + weight, 7

    replay = Replay(step, device="cuda:0", on_event=ignore)
    fixed, moved = torch.ones(3, device="cuda:0"), torch.zeros(3, device="cuda:0")
    for k in range(3 * WARM_UP):
        x, factor = torch.full((3,), float(k), device="cuda:0"), 2.0
        moved += k  # in place: the same tensor with other values
        found, seven = replay(x, (moved, factor))
        assert torch.equal(found, x * moved * factor + weight)
        assert seven == 7
        weight += 1  # what the step reaches by itself may change as well
    assert len(calls) == WARM_UP + 1
    replay(fixed, (moved, 3.0))  # another kind
    assert len(calls) == WARM_UP + 2


def test_what_cannot_be_recorded_is_called_as_it_is() -> None:
    heard: list[Event] = []
    replay = Replay(lambda x: x * float(x.sum()), device="cuda:0", on_event=heard.append)
    for k in range(3 * WARM_UP):
        x = torch.full((2,), float(k), device="cuda:0")
        assert torch.equal(replay(x), x * 2 * k)
    assert [event.text for event in heard] == [
        "running without CUDA graphs: a step waits for the GPU"
    ]


def test_after_a_recording_that_failed_nothing_else_is_recorded_or_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dreamkd.engine.replay._failed", set())
    heard: list[Event] = []

    def step(x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum()) if torch.cuda.is_current_stream_capturing() else x * x.sum()

    first, second = (Replay(f, device="cuda:0", on_event=heard.append) for f in (step, torch.neg))
    for k in range(3 * WARM_UP):
        x = torch.full((2,), float(k), device="cuda:0")
        assert torch.equal(first(x), x * 2 * k)
        assert torch.equal(second(x), -x)
    assert len(heard) == 1
    assert not second._recordings
    del first
    torch.cuda.empty_cache()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_gradient_of_a_norm_keeps_its_layout_on_a_gpu(precision: str) -> None:
    runtime = Runtime("cuda:0", precision, 1)
    norm = torch.nn.BatchNorm2d(8).eval()
    assert norm.running_var is not None
    norm.running_var.fill_(4.0)
    made = fixed(norm, runtime=runtime, input_size=(8, 6, 6))
    x = torch.randn(4, 8, 6, 6, device="cuda:0", dtype=runtime.dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    (found,) = torch.autograd.grad(made(x).sum(), x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - 0.5).abs().max() < 0.01


def test_a_teacher_of_the_caller_can_learn_after_it_was_measured(
    digits: Classifier, tmp_path: Path
) -> None:
    teacher = digits.copy()
    config = distill_config(out=str(tmp_path), device="cuda", eval_data="sklearn:digits")
    distill(config, own=Own(teacher))
    assert not any(parameter.is_inference() for parameter in teacher.module.parameters())
    teacher.module(torch.zeros(2, 1, 16, 16)).sum()


def test_what_is_compiled_is_what_is_computed(digits: Classifier) -> None:
    """Compiled and recorded: the gradient of the step that is called as it is."""
    found, heard = [], list[Event]()
    for compiled in ("off", "on"):
        config = settle(
            invert_config(device="cuda:0", image_steps=6, r_feature=1.0, compile=compiled),
            input_size=digits.card.input_size,
        )
        runtime = Runtime.settle(config)
        with Synthesiser.of(
            Networks(digits), config, runtime=runtime, on_event=heard.append
        ) as synthesiser:
            batch = synthesiser.batch(torch.arange(20) % 10, generator=generator_for(0, "b", 0))
        found.append(batch)
    assert heard == []
    assert found[0].r_feature == pytest.approx(found[1].r_feature, rel=0.02)
    assert (found[0].images.int() - found[1].images.int()).abs().float().mean() < 0.5


def test_images_and_students_come_out_on_a_gpu_as_on_the_cpu(digits: Classifier) -> None:
    """In float32, over more steps than are called before they are replayed."""
    made, learned, heard = [], [], list[Event]()
    for device in ("cpu", "cuda:0"):
        config = settle(
            invert_config(device=device, image_steps=8, crop=0.5, r_feature=1.0, jitter=2),
            input_size=digits.card.input_size,
        )
        config = replace(config, image_chunk=12)
        runtime = Runtime.settle(config)
        with Synthesiser.of(
            Networks(digits), config, runtime=runtime, on_event=heard.append
        ) as synthesiser:
            made.append(
                synthesiser.batch(torch.arange(20) % 10, generator=generator_for(0, "batch", 0))
            )
        student, images = digits.copy(), made[0].images
        config = settle(distill_config(device=device, steps=8), input_size=digits.card.input_size)
        with Training(student, digits, config, runtime=runtime, on_event=heard.append) as training:
            training.advance(Examples(images, torch.arange(20) % 10).near(device), until=8)
        learned.append(torch.cat([p.detach().cpu().flatten() for p in student.module.parameters()]))
    assert heard == []  # it was recorded
    assert made[0].r_feature == pytest.approx(made[1].r_feature, rel=0.02)
    off = (made[0].images.int() - made[1].images.int()).abs().float()
    assert off.mean() < 0.5
    assert torch.linalg.vector_norm(learned[0] - learned[1]) < 0.02 * learned[0].norm()
