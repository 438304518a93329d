"""Equations against values worked out by hand, and their gradients in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dreamkd import losses
from dreamkd.moments import Moments, Stored, moments, of_batch


def test_r_feature_by_hand() -> None:
    # 1, 3, 5, 7 in one channel: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5; |4-1| + |5-1| = 7.
    x = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(-1, 1, 1, 1)
    one = of_batch([moments(x, torch.ones(1))])
    assert float(losses.r_feature(one, Stored.of([torch.ones(1)]))) == pytest.approx(7)
    # Two channels of one call: sqrt(3^2 + 3^2) + sqrt(4^2 + 4^2).
    two = Moments(*(values.repeat(2) for values in one))
    of_one_call = losses.r_feature(two, Stored.of([torch.ones(2)]))
    assert float(of_one_call) == pytest.approx(7 * math.sqrt(2))
    # The multiplier belongs to the first executed layer only.
    of_two_calls = losses.r_feature(two, Stored.of([torch.ones(1)] * 2), first_scale=10)
    assert float(of_two_calls) == pytest.approx(77)


def test_r_feature_has_a_finite_gradient_at_the_optimum() -> None:
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).requires_grad_()
    optimum = of_batch([moments(x, torch.ones(1))])
    losses.r_feature(optimum, Stored.of([torch.ones(1)])).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_tv_l2_by_hand() -> None:
    # [[0, 1], [2, 4]]: right (1, 2), down (2, 3), diagonals 4 and 2 - 1.
    x = torch.tensor([[0.0, 1.0], [2.0, 4.0]]).view(1, 1, 2, 2)
    assert float(losses.tv_l2(x)) == pytest.approx(math.sqrt(5) + math.sqrt(13) + 4 + 1)


def test_tv_l1_by_hand() -> None:
    # Mean absolute differences: right 1.5, down 2.5, diagonals 4 and 1.
    x = torch.tensor([[0.0, 1.0], [2.0, 4.0]]).view(1, 1, 2, 2)
    assert float(losses.tv_l1(x)) == pytest.approx(9)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)], ids=str)
def test_where_there_is_no_neighbour_nothing_varies(size: tuple[int, int]) -> None:
    x = torch.ones(2, 3, *size, requires_grad=True)
    for prior in (losses.tv_l1, losses.tv_l2):
        (gradient,) = torch.autograd.grad((found := prior(x)).sum(), x)
        assert found.tolist() == [0, 0]
        assert bool((gradient == 0).all())


@pytest.mark.parametrize("prior", [losses.tv_l1, losses.tv_l2, losses.l2])
def test_priors_belong_to_each_image_alone(prior) -> None:
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert prior(x.repeat(5, 1, 1, 1)).tolist() == pytest.approx([float(prior(x))] * 5, rel=1e-6)


def test_l2_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 12.0]]).view(2, 1, 1, 2)
    assert losses.l2(x).tolist() == pytest.approx([5, 12])


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_jensen_shannon_by_hand() -> None:
    # p = (.9, .1), q = (.2, .8), M = (.55, .45):
    # (.9 ln(.9/.55) + .1 ln(.1/.45) + .2 ln(.2/.55) + .8 ln(.8/.45)) / 2
    js = losses.jensen_shannon(logits_of((0.9, 0.1)), logits_of((0.2, 0.8)))
    assert float(js) == pytest.approx(0.2753961, abs=1e-6)


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (20 * torch.randn(64, 1000, generator=generator) for _ in range(2))
    js = losses.jensen_shannon(p, q)
    assert torch.allclose(js, losses.jensen_shannon(q, p), atol=1e-6)
    assert float(js.min()) >= -1e-6  # float32 rounding
    assert float(js.max()) <= math.log(2) + 1e-6
    assert torch.allclose(losses.jensen_shannon(p, p), torch.zeros(64), atol=1e-6)


def test_agreed_divergence_by_hand() -> None:
    # Both name class 0: .75 ln(.75/.6) + .25 ln(.25/.4) = .1673577 - .1175009 = .0498568.
    # They name different classes: nothing, whatever the distance.
    teacher, student = logits_of((0.75, 0.25)), logits_of((0.6, 0.4))
    assert float(losses.agreed_divergence(teacher, student)) == pytest.approx(-0.0498568, abs=1e-6)
    assert float(losses.agreed_divergence(teacher, logits_of((0.1, 0.9)))) == 0
    warm = losses.agreed_divergence(2 * teacher, 2 * student, temperature=2.0)
    assert float(warm) == pytest.approx(-0.0498568, abs=1e-6)


def test_competition_has_a_gradient_at_a_thousand_classes() -> None:
    # Released: KL of probabilities clamped to [0.01, 0.99]; near 1/1000 all are clamped, so that
    # nothing flows back. In log space it does.
    generator = torch.Generator().manual_seed(2)
    teacher = (torch.randn(8, 1000, generator=generator) / 2).requires_grad_()
    student = torch.randn(8, 1000, generator=generator) / 2
    p, q = (z.softmax(1).clamp(0.01, 0.99) for z in (teacher, student))
    m = ((p + q) / 2).clamp(0.01, 0.99)
    released = (m * (m / p).log() + m * (m / q).log()).sum() / 2
    (dead,) = torch.autograd.grad(released, teacher)
    assert torch.count_nonzero(dead) == 0
    (alive,) = torch.autograd.grad(losses.competition(teacher, student).sum(), teacher)
    assert torch.count_nonzero(alive) == alive.numel()


def test_distillation_by_hand() -> None:
    # 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308120
    loss = losses.distillation(logits_of((0.75, 0.25)), logits_of((0.5, 0.5)), temperature=1)
    assert float(loss) == pytest.approx(0.1308120, abs=1e-6)


def test_distillation_keeps_the_gradient_at_every_temperature() -> None:
    # With tau^2 the gradient tends to that of half the squared difference of centred logits / C.
    teacher = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        losses.distillation(teacher, student, temperature=1000.0), student
    )
    assert torch.allclose(gradient, -teacher / 3, atol=1e-3)


def test_classification_by_hand() -> None:
    # ln(1 + 1), and ln(1 + 3) of logits 0 and ln 3 where the first is asked for.
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    values = losses.classification(logits, torch.tensor([1, 0]))
    assert values.tolist() == pytest.approx([math.log(2), math.log(4)])


def r_feature_of(x: Tensor) -> Tensor:
    """Of two calls of one layer, and one of another that sees lines in the place of images."""
    mean, var = torch.tensor([0.3, -0.2], dtype=x.dtype), torch.tensor([1.5, 0.5])
    calls = [moments(x, mean), moments(2 * x, mean), moments(x.reshape(-1, 1, 5) ** 2, mean[:1])]
    return losses.r_feature(of_batch(calls), Stored.of([var, var, var[:1]]), first_scale=2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "term",
    [r_feature_of, losses.tv_l1, losses.tv_l2, losses.l2],
    ids=["r_feature", "tv_l1", "tv_l2", "l2"],
)
def test_gradients_of_image_terms(term, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(term, (x.to(memory_format=layout).requires_grad_(),))


def test_the_layout_changes_no_prior() -> None:
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(4))
    for prior in (losses.tv_l1, losses.tv_l2, losses.l2):
        last = prior(x.to(memory_format=torch.channels_last))
        assert torch.allclose(last, prior(x), rtol=1e-6)


@pytest.mark.parametrize("prior", [losses.tv_l2, losses.l2])
def test_a_flat_image_has_a_finite_gradient(prior) -> None:
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(prior(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_distillation_from_all_outputs_is_that_from_the_logits() -> None:
    teacher, student = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0)) * 3
    kept = losses.sparse((teacher / 4).log_softmax(1), 50, generator=None)
    assert kept.classes.shape == (8, 20)
    found = losses.distillation_from_sparse(kept, student, temperature=4.0)
    wanted = losses.distillation(teacher, student, temperature=4.0)
    assert float(found) == pytest.approx(float(wanted), rel=2e-3)


def test_of_one_output_the_rest_is_spread_evenly() -> None:
    teacher = torch.tensor([[2.0, 1.0, 0.0, -1.0, -1.0]])
    student = torch.tensor([[0.5, 0.0, 1.0, -0.5, 0.2]])
    log_p = (teacher / 2).log_softmax(1)
    kept = losses.sparse(log_p, 1, generator=None)
    p = torch.cat([log_p.exp()[0, :1], (1 - log_p.exp()[0, :1]).expand(4) / 4])
    q = (student / 2).log_softmax(1)[0]
    found = losses.distillation_from_sparse(kept, student, temperature=2.0)
    assert float(found) == pytest.approx(4 * float((p * (p.log() - q)).sum()), rel=2e-3)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("others", [-50.0, -1e5])
def test_a_teacher_without_doubt_leaves_loss_and_gradient_finite(k: int, others: float) -> None:
    """Its first probability rounds to 1, and others leave the range of half precision."""
    log_p = torch.tensor([[0.0, others, others]]).log_softmax(1)
    kept = losses.sparse(log_p, k, generator=torch.Generator().manual_seed(0))
    student = torch.zeros(1, 3, requires_grad=True)
    loss = losses.distillation_from_sparse(kept, student, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-4)
    assert torch.allclose(gradient, torch.tensor([[-2 / 3, 1 / 3, 1 / 3]]), atol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits: losses.classification(logits, torch.arange(8)),
        lambda logits: losses.hard_labels(logits, torch.eye(8, 50), smoothing=0.1),
        lambda logits: losses.softened(logits, 3.0),
    ],
    ids=["classification", "hard labels", "softened"],
)
def test_logits_of_half_precision_are_compared_in_full(loss) -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(loss(logits), loss(logits.float()), rtol=0, atol=0)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_over_all_draws_loss_and_gradient_are_those_of_all_outputs(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(1, 7, generator=generator) * 3
    student = torch.randn(1, 7, generator=generator).requires_grad_()
    log_p = (teacher / 4).log_softmax(1)
    order = log_p[0].argsort(descending=True)
    first = -(-k // 2)
    found = []
    for drawn in itertools.combinations(order[first:].tolist(), k - first):
        index = torch.tensor([[*order[:first].tolist(), *drawn]])
        kept = losses.SparseOutputs(index.int(), log_p.gather(1, index).half())
        found.append(losses.distillation_from_sparse(kept, student, temperature=4.0))
    estimate = torch.stack(found).mean()
    wanted = losses.distillation(teacher, student, temperature=4.0)
    assert estimate.item() == pytest.approx(wanted.item(), rel=1e-2, abs=2e-3)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (estimate, wanted)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 5e-3


def test_half_of_what_is_kept_is_the_largest_and_half_is_drawn_anew() -> None:
    log_p = torch.arange(8.0).flip(0).log_softmax(0).expand(400, 8)
    kept = losses.sparse(log_p, 4, generator=torch.Generator().manual_seed(0))
    assert kept.classes[:, :2].tolist() == [[0, 1]] * 400
    counts = torch.bincount(kept.classes[:, 2:].flatten(), minlength=8).tolist()
    assert counts[:2] == [0, 0]
    assert all(90 < count < 180 for count in counts[2:])  # 133 each
    one = losses.sparse(log_p, 1, generator=None)
    assert one.classes.tolist() == [[0]] * 400
