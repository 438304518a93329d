"""Both workflows on a CUDA device: the same path, the same start, everything brought home."""

from pathlib import Path

import pytest
import torch

from dreamkd import manifest, models
from dreamkd.distillation import distill
from dreamkd.inversion import invert
from tests.conftest import distill_config, invert_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


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
