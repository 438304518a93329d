"""Both workflows on a CUDA device: the same path, the same start, everything brought home."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkd import manifest, models
from dreamkd.config import settle
from dreamkd.distillation import distill
from dreamkd.engine import LOOK, Runtime
from dreamkd.examples import Examples
from dreamkd.inversion import invert
from dreamkd.models import Classifier
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from dreamkd.training import Training
from tests.conftest import distill_config, invert_config

pytestmark = [
    pytest.mark.gpu,
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
    with Synthesiser.of(digits, config, runtime=Runtime.settle(config)) as synthesiser:
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
    looked_at = step % LOOK in (0, 1, LOOK - 1)
    torch.cuda.set_sync_debug_mode("default" if looked_at else "error")
