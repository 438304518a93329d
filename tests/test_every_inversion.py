"""Any classifier: networks drawn at random, and a transformer without batch norm."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from dreamkd import data, models
from dreamkd.engine import normalise
from dreamkd.inversion import invert
from dreamkd.models import Classifier
from tests.benchmarks import every_model
from tests.conftest import invert_config

drawn = cache(every_model.drawn)  # when the first test runs, not when tests are collected


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_a_random_network_can_be_inverted_in_one_graph(number: int) -> None:
    network = every_model.smallest(drawn(6)[number])
    every_model.invert(network)
    every_model.trace(network)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer that tells digits apart: LayerNorm, no statistics."""
    card = {"num_classes": 10, "input_size": (1, 64, 64), "mean": (0.3,), "std": (0.35,)}
    vit = models.create("timm:test_vit", **card)
    how = data.Preprocessing(input_size=(1, 64, 64))
    images, labels = data.stack(data.open_images("sklearn:digits:train", preprocessing=how))
    inputs = normalise(images, mean=card["mean"], std=card["std"])
    optimizer = torch.optim.AdamW(vit.module.parameters(), lr=2e-3)
    steps = 500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(len(labels), (64,), generator=generator)
        loss = nn.functional.cross_entropy(vit.module(inputs[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    test, truth = data.stack(data.open_images("sklearn:digits", preprocessing=how))
    assert accuracy(vit, test, truth) > 0.8
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    models.save(vit, path)
    return path


@torch.no_grad()
def accuracy(network: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    inputs = normalise(images, mean=network.card.mean, std=network.card.std)
    return float((network.module.eval()(inputs).argmax(1) == labels).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"method": "deepdream", "images": "pyramid"},
        {"bn_prior": "digits_resnet14", "r_feature_scale": 0.1},
    ],
    ids=["pyramid", "prior"],
)
def test_a_transformer_classifies_its_images_as_asked(
    transformer: Path, tmp_path: Path, how: dict[str, object]
) -> None:
    result = invert(
        invert_config(
            model=str(transformer),
            image_steps=100,
            per_class=2,
            jitter=3,
            out=str(tmp_path / "run"),
            **how,
        )
    )
    assert result.teacher_top1 >= 90
