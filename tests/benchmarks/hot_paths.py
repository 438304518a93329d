"""The paths that all time goes through, watched by pytest-benchmark; nothing is asserted of time.

    python3 -m pip install -e '.[bench]'
    pytest tests/benchmarks/hot_paths.py --benchmark-autosave --benchmark-compare

Networks are small and eager, so that what is ours shows: see `tests.benchmarks.step` for the step
of real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkd import models, shards
from dreamkd.augment import draw_view, see
from dreamkd.config import settle
from dreamkd.engine import Runtime
from dreamkd.examples import Examples
from dreamkd.models import Classifier
from dreamkd.moments import moments
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from dreamkd.training import Training
from tests.conftest import distill_config, invert_config

STEPS, BATCH = 5, 64
LABELS = torch.arange(BATCH) % 10


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return models.load("digits_resnet14")


def test_image_steps(benchmark: Any, teacher: Classifier) -> None:
    config = invert_config(image_steps=STEPS, r_feature=1.0, image_chunk=BATCH)
    config = settle(config, input_size=teacher.card.input_size)
    with Synthesiser(
        Objective(Networks(teacher), config, runtime=Runtime.settle(config))
    ) as synthesiser:
        benchmark(lambda: synthesiser.batch(LABELS, generator=generator_for(0, "benchmark")))


def test_student_steps(benchmark: Any, teacher: Classifier) -> None:
    config = settle(distill_config(steps=10**6, batch_size=BATCH), input_size=(1, 16, 16))
    student = models.create(
        "cifar_resnet8", num_classes=10, input_size=(1, 16, 16), mean=(0.3,), std=(0.3,)
    )
    examples = Examples(torch.zeros(BATCH, 1, 16, 16, dtype=torch.uint8), LABELS)
    with Training(student, teacher, config, runtime=Runtime.settle(config)) as training:
        benchmark(lambda: training.advance(examples, until=training.step + STEPS))


def test_moments_of_a_layer(benchmark: Any) -> None:
    x = torch.randn(BATCH, 64, 16, 16).to(memory_format=torch.channels_last)
    benchmark(moments, x, torch.zeros(64))


@pytest.mark.parametrize("smallest", [None, 0.5], ids=["shifts", "crops"])
def test_views(benchmark: Any, smallest: float | None) -> None:
    x = torch.randn(BATCH, 3, 32, 32)
    draws = {"shift": 2, "flip": True, "smallest": smallest, "generator": generator_for(0, "view")}
    view = draw_view(BATCH, **draws)
    benchmark(see, x, view)


def test_write_a_shard(benchmark: Any, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    records = [{"key": f"{i:08d}"} for i in range(BATCH)]
    benchmark(shards.write, tmp_path / "shard.tar", images, LABELS.tolist(), records)


def test_read_a_shard(benchmark: Any, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    records = [{"key": f"{i:08d}"} for i in range(BATCH)]
    shards.write(tmp_path / "shard.tar", images, LABELS.tolist(), records)
    benchmark(lambda: list(shards.read(tmp_path / "shard.tar")))
