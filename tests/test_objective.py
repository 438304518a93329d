"""The inner step: what it differentiates, whole or in chunks, alone or beside other networks."""

import copy
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamkd import batchnorm, losses, models, objective
from dreamkd.augment import View, draw_view
from dreamkd.batchnorm import watch
from dreamkd.config import InvertConfig, settle
from dreamkd.engine import Runtime, chunks, frozen, renormalise
from dreamkd.models import Card, Classifier
from dreamkd.moments import Average, Moments, of_batch
from dreamkd.networks import Networks
from dreamkd.objective import Loss, Objective
from tests.benchmarks import plain
from tests.conftest import against, invert_config

LABELS = torch.arange(12) % 10


def settings(teacher: Classifier, **given: Any) -> InvertConfig:
    config = settle(invert_config(r_feature=0.5, **given), input_size=teacher.card.input_size)
    return replace(config, image_chunk=given.get("image_chunk", 100))


def batch(size: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, View]:
    channels, height, width = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(LABELS), channels, height, width, generator=generator)
    return x, draw_view(len(LABELS), shift=1, flip=True, smallest=0.5, generator=generator)


def loss_of(
    networks: Networks | Classifier,
    config: InvertConfig,
    *,
    factor: int = 1,
    average: Average | None = None,
    most: int = len(LABELS),
    **given: Any,
) -> tuple[Loss, list[str]]:
    if isinstance(networks, Classifier):
        networks = Networks(networks)
    seen: list[int] = []
    x, view = batch(networks.teacher.card.input_size)
    with Objective(networks, config, runtime=Runtime.settle(config), **given) as evaluate:
        evaluate._model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        found = evaluate(x, LABELS, view, factor=factor, average=average)
        assert max(seen) <= most
        return found, evaluate.term_names()


def student_of(teacher: Classifier) -> Classifier:
    card = teacher.card
    return models.create(
        "cifar_resnet8", num_classes=10, input_size=card.input_size, mean=(0.5,), std=(0.25,)
    )


def test_terms_and_gradient_are_those_of_the_plain_formula_in_float64(digits: Classifier) -> None:
    config = settings(digits, tv_l2=0.1, l2=0.2, first_bn=3)
    x, _ = batch((1, 16, 16))
    still = draw_view(len(x), shift=0, flip=False, smallest=None, generator=None)
    with Objective(Networks(digits), config, runtime=Runtime.settle(config)) as evaluate:
        found = evaluate(x, LABELS, still)
        names = evaluate.term_names()
    model, x = copy.deepcopy(digits.module).double(), x.double().requires_grad_()
    with plain.statistics_terms(model) as distances:
        logits = model(x)
    terms = {
        "ce": nn.functional.cross_entropy(logits, LABELS),
        "tv_l2": 0.1 * losses.tv_l2(x).mean(),
        "l2": 0.2 * losses.l2(x).mean(),
        "r_feature": 0.5 * (3 * distances[0] + sum(distances[1:])),
    }
    (gradient,) = torch.autograd.grad(sum(terms.values()), x)
    assert names == [*terms]
    assert found.terms.tolist() == pytest.approx([t.item() for t in terms.values()], rel=1e-5)
    assert float((found.gradient - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("factor", [1, 2])
def test_beside_other_networks_terms_are_those_of_the_plain_formula(
    digits: Classifier, factor: int
) -> None:
    """A rival and a prior that differ from the teacher in nothing but their normalisation."""
    rival = Classifier(digits.module, replace(digits.card, mean=(0.1,), std=(0.6,)))
    prior = Classifier(digits.module, replace(digits.card, mean=(0.4,), std=(0.8,)))
    config = settings(digits, tv_l2=0.1, **against(2, competition_temperature=3))
    x, _ = batch((1, 16, 16))
    still = draw_view(len(x), shift=0, flip=False, smallest=None, generator=None)
    networks = Networks(digits, prior=prior, rival=rival)
    with Objective(networks, config, runtime=Runtime.settle(config)) as evaluate:
        found = evaluate(x, LABELS, still, factor=factor)
        alone = evaluate(x, LABELS, still, factor=factor, compete=False)
        names = [evaluate.term_names(compete=compete) for compete in (True, False)]
    # Each pixel that the networks see is the mean of a square.
    x = x.unflatten(2, (-1, factor)).unflatten(4, (-1, factor)).mean((3, 5)).double()
    images = x * digits.card.std[0] + digits.card.mean[0]
    model = copy.deepcopy(digits.module).double()
    logits, theirs = model(x), model((images - 0.1) / 0.6)
    with plain.statistics_terms(model) as distances:
        model(nn.functional.interpolate((images - 0.4) / 0.8, (16, 16), mode="bilinear"))
    terms = {
        "ce": nn.functional.cross_entropy(logits, LABELS),
        "tv_l2": 0.1 * losses.tv_l2(x).mean(),
        "competition": 2 * losses.competition(logits, theirs, temperature=3).mean(),
        "r_feature": 0.5 * sum(distances),
    }
    assert names == [[*terms], ["ce", "tv_l2", "r_feature"]]
    wanted = torch.stack([*terms.values()]).float()
    assert torch.allclose(found.terms, wanted, rtol=1e-4)
    assert torch.allclose(alone.terms, wanted[[0, 1, 3]], rtol=1e-4)


def test_what_was_left_may_be_entered_again_with_other_weights(digits: Classifier) -> None:
    teacher, student, config = digits.copy(), student_of(digits), settings(digits, **against(2))
    x, view = batch((1, 16, 16))
    networks, runtime = Networks(teacher, rival=student), Runtime.settle(config)
    evaluate = Objective(networks, config, runtime=runtime)
    with evaluate:
        evaluate(x, LABELS, view)
    assert all(weight.is_contiguous() for weight in student.module.parameters())
    for layer in batchnorm.layers(teacher.module):
        layer.running_var.mul_(2)
    with evaluate, Objective(networks, config, runtime=runtime) as another:
        again, wanted = (each(x, LABELS, view) for each in (evaluate, another))
    assert torch.equal(again.terms, wanted.terms)


@pytest.mark.parametrize("size", [1, 5, 6, 11])
@pytest.mark.parametrize("how", ["alone", "rival", "half resolution", "average", "prior"])
def test_a_batch_in_chunks_has_the_gradient_of_the_whole(
    digits: Classifier, size: int, how: str
) -> None:
    given: dict[str, Any] = {}
    networks = Networks(
        digits,
        prior=digits if how == "prior" else None,
        rival=student_of(digits) if how == "rival" else None,
    )
    if how == "half resolution":
        given["factor"] = 2
    if how == "average":
        with frozen(digits.module) as model, watch(model) as watched:
            model(torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(5)))
            given["average"] = Average(of_batch(watched.take()), 0.8)
    config = settings(digits, tv_l1=0.3, **against(2, competition_temperature=2))
    whole, _ = loss_of(networks, config, **given)
    cut, _ = loss_of(networks, replace(config, image_chunk=size), most=size, **given)
    assert torch.allclose(cut.terms, whole.terms, rtol=1e-5)
    assert torch.allclose(cut.scores, whole.scores, rtol=1e-4, atol=1e-6)
    scale = float(whole.gradient.abs().max())
    assert float((cut.gradient - whole.gradient).abs().max()) < 1e-5 * scale


def test_chunks_are_nearly_equal_and_complete() -> None:
    assert chunks(10, 100) == [slice(0, 10)]
    assert chunks(10, 4) == [slice(0, 3), slice(3, 7), slice(7, 10)]
    assert chunks(256, 128) == [slice(0, 128), slice(128, 256)]


def test_scores_are_what_each_image_has_for_itself(digits: Classifier) -> None:
    found, names = loss_of(digits, settings(digits, tv_l2=0.1))
    own = [value for name, value in zip(names, found.terms, strict=True) if name != "r_feature"]
    assert float(found.scores.mean()) == pytest.approx(float(sum(own)), rel=1e-5)


def test_an_average_takes_its_share_of_the_statistics(digits: Classifier) -> None:
    config = settings(digits, ce=0)
    stored = batchnorm.stored(digits.module, (1, 16, 16), name="digits")
    # Statistics that agree with what is stored leave a thousandth of the distance of a batch.
    agreeing = Moments(torch.zeros_like(stored.var), stored.var)
    alone, _ = loss_of(digits, config)
    within, _ = loss_of(digits, config, average=Average(agreeing, 0.999))
    assert float(within.terms[-1]) < 0.01 * float(alone.terms[-1])


def test_a_prior_brings_its_own_size_and_normalisation(digits: Classifier) -> None:
    # The same network, told that its inputs are 32 px: it sees the images enlarged.
    other = Classifier(digits.module, replace(digits.card, input_size=(1, 32, 32), mean=(0.1,)))
    same, _ = loss_of(Networks(digits, prior=digits), settings(digits))
    plain, _ = loss_of(digits, settings(digits))
    enlarged, _ = loss_of(Networks(digits, prior=other), settings(digits))
    assert torch.allclose(same.gradient, plain.gradient, atol=1e-7)
    assert not torch.allclose(enlarged.gradient, plain.gradient, atol=1e-5)
    assert float(enlarged.terms[0]) == pytest.approx(float(plain.terms[0]))


def test_a_network_without_batch_norm_takes_statistics_from_a_prior(digits: Classifier) -> None:
    plain = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), digits.card)
    found, names = loss_of(Networks(plain, prior=digits), settings(digits))
    assert names == ["ce", "r_feature"]
    assert float(found.terms[1]) > 0


def test_without_statistics_nothing_is_collected(digits: Classifier) -> None:
    config = settings(digits)
    x, view = batch((1, 16, 16))
    runtime = Runtime.settle(config)
    with Objective(Networks(digits), config, runtime=runtime, statistics=False) as evaluate:
        before = collected()
        for _ in range(3):
            evaluate(x, LABELS, view)
        assert collected() == before


def collected() -> int:
    gc.collect()
    return sum(type(thing) is Moments for thing in gc.get_objects())


def test_the_graph_gives_the_loss_and_nothing_else(
    digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else it gave would be kept, and have a gradient of zeros made for it in every step."""
    torch.compiler.reset()  # torch counts the graphs of all tests of a process together
    outputs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        outputs.append(len(output.args[0]))
        return graph.forward

    def traced(step: Any, *, on_event: object) -> Any:
        return torch.compile(step, fullgraph=True, dynamic=False, backend=backend)

    monkeypatch.setattr(objective, "compile_step", traced)
    loss_of(digits, settings(digits, tv_l2=0.1), compiled=True)
    assert outputs == [3]  # scalar, terms, scores


def test_renormalise_equals_the_way_through_images(digits: Classifier) -> None:
    other: Card = replace(digits.card, mean=(0.1,), std=(0.7,))
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = (images - digits.card.mean[0]) / digits.card.std[0]
    wanted = (images - 0.1) / 0.7
    assert torch.allclose(renormalise(inputs, digits.card, other), wanted, atol=1e-6)
    assert renormalise(inputs, digits.card, digits.card) is inputs
