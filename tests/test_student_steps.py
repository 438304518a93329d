"""What a step of the student draws, what its teacher sees, and what is recorded of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dreamkd import losses
from dreamkd.config import settle
from dreamkd.engine import Runtime
from dreamkd.examples import Examples
from dreamkd.losses import SparseOutputs
from dreamkd.models import Classifier
from dreamkd.training import Training
from tests.conftest import distill_config
from tests.test_training import examples, fresh, linear, same, weights

#: One image, always the same view.
GREY = Examples(torch.full((1, 1, 16, 16), 128, dtype=torch.uint8), torch.tensor([3]))


def test_a_student_that_drops_units_resumes_to_the_bit(digits: Classifier) -> None:
    config = settle(distill_config(), input_size=(1, 16, 16))
    module = nn.Sequential(nn.Dropout(0.5), *linear().module)
    student, runtime = Classifier(module, linear().card), Runtime.settle(config)
    whole, first, second = (
        Training(student.copy(), digits, config, runtime=runtime) for _ in range(3)
    )
    with whole, first:
        whole.advance(examples(), until=6)
        first.advance(examples(), until=3)
        tensors, facts = first.state()
    with second:
        second.restore(tensors, facts)
        second.advance(examples(), until=6)
    assert same(weights(whole), weights(second))


def test_each_network_sees_images_in_its_own_normalisation(digits: Classifier) -> None:
    config = settle(distill_config(steps=1, warmup=0), input_size=(1, 16, 16))
    student, seen = linear(), []
    grey = torch.full((16, 1, 16, 16), 128 / 255)
    (mean,), (std,) = digits.card.mean, digits.card.std
    with torch.no_grad():
        logits = digits.module((grey - mean) / std), student.module((grey - 0.3) / 0.3)
    with Training(student, digits, config, runtime=Runtime.settle(config)) as run:
        run.advance(GREY, until=1, on_step=lambda _, terms: seen.append(terms["kd"]))
    wanted = losses.distillation(*logits, temperature=float(config.temperature))
    assert seen == [pytest.approx(float(wanted), rel=1e-4)]


def test_labels_are_drawn_anew_in_every_step_and_not_recorded_in_rehearsal(
    digits: Classifier,
) -> None:
    config = settle(distill_config(), input_size=(1, 16, 16))
    config, told = replace(config, store_labels=6), dict[int, SparseOutputs]()
    runtime = Runtime.settle(config)
    with Training(fresh(), digits, config, runtime=runtime, record=told.__setitem__) as run:
        with run.rehearsal():
            run.advance(GREY, until=1)
        assert not told
        run.advance(GREY, until=2)
    first, second = told[0].classes, told[1].classes
    assert torch.equal(first[:, :3], second[:, :3])  # the largest
    assert not torch.equal(first[:, 3:], second[:, 3:])
