"""Metrics against values worked out by hand."""

import math

import pytest
import torch

from dreamkd import models
from dreamkd.engine import normalise
from dreamkd.metrics import Accuracy, Agreement, measure, top_k_hits
from dreamkd.models import Classifier
from tests.benchmarks.diversity import features, intra_class_similarity

LOGITS = torch.tensor(
    [
        # guesses in order: 0 1 2, 2 1 0, 1 0 2, 1 2 0
        [3.0, 2.0, 1.0],
        [0.0, 1.0, 5.0],
        [1.0, 2.0, 0.0],
        [0.0, 9.0, 8.0],
    ]
)
TARGETS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("k", "hits"),
    [(1, [True, False, False, True]), (2, [True, True, False, True]), (3, [True] * 4)],
)
def test_top_k_hits(k, hits):
    assert top_k_hits(LOGITS, TARGETS, k).tolist() == hits


def test_accuracy_adds_batches():
    accuracy = Accuracy(3)
    for logits, targets in zip(LOGITS.split(3), TARGETS.split(3), strict=True):
        accuracy.add(logits, targets)
    assert accuracy.count == 4
    assert accuracy.top1 == 50.0  # the first and the last
    assert accuracy.per_class() == [(1, 1), (2, 1), (1, 0)]
    assert (accuracy.top5_guesses, accuracy.top5) == (3, 100.0)


def test_top_5_of_six_classes():
    accuracy = Accuracy(6)
    accuracy.add(torch.arange(6.0).repeat(4, 1), torch.tensor([0, 1, 5, 0]))
    assert (accuracy.top1, accuracy.top5) == (25.0, 50.0)  # class 0 has the smallest logit


def test_loss_is_the_mean_cross_entropy():
    # softmax of (ln 3, 0) is (3/4, 1/4): -ln 3/4 and -ln 1/4, mean (2 ln 4 - ln 3) / 2
    accuracy = Accuracy(2)
    accuracy.add(torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]))
    accuracy.add(torch.tensor([[math.log(3), 0.0]]), torch.tensor([1]))
    assert accuracy.loss == pytest.approx(math.log(4) - math.log(3) / 2, rel=1e-7)


def test_half_precision_logits_are_summed_in_full():
    accuracy = Accuracy(2)
    for _ in range(40):
        accuracy.add(torch.zeros(100, 2, dtype=torch.bfloat16), torch.zeros(100, dtype=torch.int64))
    assert accuracy.loss == pytest.approx(math.log(2), rel=1e-6)  # 4,000 ln 2 is no bfloat16


def test_agreement():
    agreement = Agreement()
    agreement.add(LOGITS[:2], LOGITS[:2].flip(1))  # 0 and 2, 2 and 0
    agreement.add(LOGITS[2:], -LOGITS[2:])  # 1 and 2, 1 and 0
    agreement.add(LOGITS, 2 * LOGITS)
    assert agreement.percent == 50.0


def test_similarity_by_hand() -> None:
    # Class 0: (1, 0), (0, 2), (3, 3): cosines 0, 1/sqrt 2, 1/sqrt 2. Class 1: two equal. 2: alone.
    rows = torch.tensor([[1.0, 0], [0, 2], [3, 3], [1, 1], [2, 2], [1, 0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    wanted = (2 / (3 * 2**0.5) + 1) / 2
    assert intra_class_similarity(rows, labels) == pytest.approx(wanted, abs=1e-6)


def test_of_single_images_there_is_no_similarity() -> None:
    assert math.isnan(intra_class_similarity(torch.eye(3), torch.arange(3)))


def test_features_are_what_the_last_layer_weighs(digits: Classifier) -> None:
    images = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    card, module = digits.card, digits.module
    last = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        logits = module(normalise(images, mean=card.mean, std=card.std))
        assert torch.allclose(last(features(digits, images)), logits, atol=1e-5)
    assert not last._forward_pre_hooks


def test_a_teacher_is_measured_beside_on_the_same_images(digits: Classifier) -> None:
    other = models.create(
        "cifar_resnet8", num_classes=10, input_size=(1, 16, 16), mean=(0.5,), std=(0.5,)
    )
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (70, 1, 4, 4), dtype=torch.uint8, generator=generator)
    images = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    labels, asked = torch.arange(70) % 10, []
    both = measure(other, images, labels, teacher=digits, on_batch=lambda: asked.append(1))
    assert len(asked) == 2  # 64 images, and 6
    alone = [measure(network, images, labels) for network in (other, digits)]
    assert [both.top1, both.teacher_top1] == [one.top1 for one in alone]
    assert both.top1 != both.teacher_top1
    assert alone[0].teacher_top1 is None
    with torch.no_grad():
        ours, theirs = (
            n.module(normalise(images, mean=n.card.mean, std=n.card.std)).argmax(1)
            for n in (other, digits)
        )
    same = int((ours == theirs).sum())
    assert both.agreement == pytest.approx(100 * same / 70)
    assert 0 < same < 70


def test_what_was_measured_can_still_learn(digits: Classifier) -> None:
    """Weights that are moved, as to another device and home again, stay tensors like others."""

    class Moving(torch.nn.Sequential):
        def to(self, *_: object) -> "Moving":
            for parameter in self.parameters():
                parameter.data = parameter.data.clone()
            return self

    moving = Classifier(Moving(digits.copy().module), digits.card)
    images = torch.zeros((2, 1, 16, 16), dtype=torch.uint8)
    measure(digits, images, torch.tensor([0, 1]), teacher=moving)
    assert not any(parameter.is_inference() for parameter in moving.module.parameters())
    moving.module(torch.zeros(2, 1, 16, 16)).sum().backward()
