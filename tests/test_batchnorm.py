"""Every batch-norm kind is found, watched at its input and left as it was."""

import pytest
import timm.layers
import torch
import torchvision.ops
from torch import Tensor, nn

from dreamkd import batchnorm
from dreamkd.batchnorm import watch
from dreamkd.errors import NoBatchNormError
from dreamkd.moments import Moments, moments, of_batch, of_images

KINDS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), (5, 4)),
    "BatchNorm1d over time": (lambda: nn.BatchNorm1d(4), (5, 4, 7)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), (5, 4, 3, 3)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), (5, 4, 2, 3, 3)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), (5, 4, 3, 3)),
    "timm BatchNormAct2d": (lambda: timm.layers.BatchNormAct2d(4), (5, 4, 3, 3)),
    "timm FrozenBatchNormAct2d": (lambda: timm.layers.FrozenBatchNormAct2d(4), (5, 4, 3, 3)),
    "torchvision FrozenBatchNorm2d": (lambda: torchvision.ops.FrozenBatchNorm2d(4), (5, 4, 3, 3)),
}


def filled(build) -> nn.Module:
    layer = build().eval()
    generator = torch.Generator().manual_seed(0)
    layer.running_mean.copy_(torch.randn(4, generator=generator))
    layer.running_var.copy_(torch.rand(4, generator=generator) + 0.5)
    return layer


def taken(x: Tensor, mean: Tensor) -> Moments:
    """Of one call."""
    return of_batch([moments(x, mean)])


def snapshot(model: nn.Module) -> list[object]:
    """Everything a watch could leave behind."""
    return [
        (name, len(m._forward_pre_hooks), len(m._forward_hooks), m.training)
        for name, m in model.named_modules()
    ] + [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_watched_at_its_input(kind: str) -> None:
    build, shape = KINDS[kind]
    layer = filled(build)
    model = nn.Sequential(nn.Identity(), layer)
    x = 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with watch(model) as watched:
        model(x)
        found = of_batch(watched.take())
    channels = x.transpose(0, 1).flatten(1)
    assert torch.allclose(found.offset + layer.running_mean, channels.mean(1), rtol=1e-5)
    assert torch.allclose(found.var, channels.var(1, correction=0), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_behind_even_if_the_model_raises(kind: str) -> None:
    build, shape = KINDS[kind]

    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise FloatingPointError

    model = nn.Sequential(filled(build), Raises())
    before = snapshot(model)
    with pytest.raises(FloatingPointError), watch(model):
        model(torch.randn(shape))
    with pytest.raises(FloatingPointError):
        batchnorm.trace(model, torch.randn(shape))
    assert snapshot(model) == before


def test_layers_without_running_statistics_do_not_count() -> None:
    model = nn.Sequential(
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
    )
    assert batchnorm.layers(model) == []


@pytest.mark.parametrize("shapes", [((4, 1), (4, 1)), ((4,), (1,)), ((), ())], ids=str)
def test_statistics_of_other_shapes_are_of_something_else(shapes: tuple[tuple[int, ...]]) -> None:
    model = nn.Identity()
    for name, shape in zip(("running_mean", "running_var"), shapes, strict=True):
        model.register_buffer(name, torch.ones(shape))
    assert batchnorm.layers(model) == []


def test_trace_lists_calls_in_execution_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm2d(4)
            self.first = nn.BatchNorm2d(4)
            self.never = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.first(self.last(x[:, :, ::2, ::2]))

    calls = batchnorm.trace(Backwards().eval(), torch.zeros(2, 4, 8, 8))
    assert [call.layer.name for call in calls] == ["first", "last", "first"]
    assert [call.shape for call in calls] == [(2, 4, 8, 8), (2, 4, 4, 4), (2, 4, 4, 4)]


def test_what_is_stored_lies_end_to_end_call_after_call() -> None:
    narrow, wide = filled(lambda: nn.BatchNorm2d(4)), nn.BatchNorm2d(6).eval()
    model = nn.Sequential(narrow, nn.Conv2d(4, 6, 1), wide, nn.Conv2d(6, 4, 1), narrow)
    stored = batchnorm.stored(model, (4, 2, 2), name="net")
    assert torch.equal(
        stored.var, torch.cat([narrow.running_var, wide.running_var, narrow.running_var])
    )
    assert stored.call.tolist() == [0] * 4 + [1] * 6 + [2] * 4
    values = torch.arange(28.0).view(2, 14)
    assert stored.sums(values).tolist() == [[6, 39, 46], [62, 123, 102]]


def test_a_layer_that_is_never_called_stores_nothing() -> None:
    class Functional(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            (norm,) = self
            return nn.functional.batch_norm(x, norm.running_mean, norm.running_var)

    with pytest.raises(NoBatchNormError, match=r"^net: none of its 1 batch-norm layers runs, so"):
        batchnorm.stored(Functional(nn.BatchNorm2d(3)), (3, 2, 2), name="net")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_one_pass_statistics_at_large_offsets(dtype: torch.dtype, offset: float) -> None:
    """At 100 standard deviations from zero, within 1e-4 of float64 on the same values."""
    generator = torch.Generator().manual_seed(2)
    x = (offset + torch.randn(64, 3, 16, 16, generator=generator)).to(dtype)
    exact = x.double().transpose(0, 1).flatten(1)
    mean = torch.full((3,), offset + 0.5)
    found = taken(x, mean)
    assert torch.allclose((found.offset + mean).double(), exact.mean(1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(found.var.double(), exact.var(1, correction=0), rtol=1e-4)


def test_statistics_have_the_gradient_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 3, 4, 4, generator=generator).requires_grad_()
    weight = torch.randn(2, 3, generator=generator)
    fast = taken(x, torch.randn(3, generator=generator))
    (got,) = torch.autograd.grad((weight[0] * fast.offset + weight[1] * fast.var).sum(), x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    (wanted,) = torch.autograd.grad((weight[0] * mean + weight[1] * var).sum(), x)
    assert torch.allclose(got, wanted, atol=1e-7)


def test_moments_of_a_batch_are_the_weighted_means_of_its_parts() -> None:
    generator = torch.Generator().manual_seed(4)
    x = 5 + torch.randn(10, 3, 4, 4, generator=generator, dtype=torch.float64)
    mean = torch.full((3,), 4.0)
    whole, parts = taken(x, mean), [taken(part, mean) for part in x.split([4, 6])]
    for field in ("offset", "square"):
        first, second = (getattr(part, field) for part in parts)
        assert torch.allclose(0.4 * first + 0.6 * second, getattr(whole, field))


def test_a_layer_may_see_positions_in_the_place_of_images() -> None:
    x, mean = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(6)), torch.zeros(3)
    folded = x.transpose(1, 2).reshape(24, 3)
    alone = of_batch([moments(x, mean)])
    beside = of_batch([moments(x, mean), moments(folded, mean)])
    for one, two in zip(alone, beside, strict=True):
        assert torch.allclose(two, one.repeat(2), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("count", [6, 2], ids=["a-row-an-image", "three-rows-an-image"])
def test_moments_of_a_batch_are_the_means_of_its_images(shape: tuple[int, ...], count: int) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    mean = torch.tensor([1.0, 0.0, -1.0])
    each, whole = of_images([moments(x, mean)], count=count), taken(x, mean)
    for field in ("offset", "square"):
        rows = getattr(each, field)
        assert rows.shape == (count, 3)
        assert torch.allclose(rows.mean(0), getattr(whole, field), atol=1e-6)
    first = taken(x[: 6 // count], mean)
    assert torch.allclose(each.square[0], first.square, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_compiled_moments_at_a_hundred_standard_deviations(dtype: torch.dtype) -> None:
    """Within 1e-4 of float64 on the same values, and the gradient of the plain formula."""
    x = 100 + torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    mean = torch.full((4,), 100.5)
    weight = torch.linspace(0.5, 2, 4)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        found = taken(x, mean)
        return found.offset + mean, found.var

    got = torch.compile(both, fullgraph=True)(x)
    exact = x.detach().double().requires_grad_()
    wanted = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4)
    (grad,) = torch.autograd.grad(sum((weight * s).sum() for s in got), x)
    (plain,) = torch.autograd.grad(sum((weight * s).sum() for s in wanted), exact)
    # Each value is rounded once to the precision of x.
    assert torch.allclose(grad.double(), plain, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4)


def test_recalibrated_statistics_are_plain_means_over_batches() -> None:
    """Whatever else is random or has statistics, which are put aside; all is in eval mode then."""
    norm, frozen = nn.BatchNorm1d(3, momentum=0.3), torchvision.ops.FrozenBatchNorm2d(3)
    model = nn.Sequential(nn.Dropout(0.5), norm, nn.Unflatten(1, (3, 1, 1)), frozen).train()
    batches = list(torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(7)))
    batchnorm.recalibrate(model, batches)
    means, variances = (torch.stack(found) for found in zip(*map(of, batches), strict=True))
    assert torch.allclose(norm.running_mean, means.mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, variances.mean(0), atol=1e-6)
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())
    assert torch.equal(frozen.running_var, torch.ones(3))


def of(batch: Tensor) -> tuple[Tensor, Tensor]:
    return batch.mean(0), batch.var(0)


def test_statistics_that_training_moves_are_those_of_layers_that_keep_some() -> None:
    norm, none = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(none, torchvision.ops.FrozenBatchNorm2d(3), norm)
    mean, var = batchnorm.running_statistics(model)
    assert mean is norm.running_mean
    assert var is norm.running_var


def with_statistics(mean: list[float], var: list[float]) -> nn.Module:
    layer = nn.BatchNorm2d(2)
    layer.running_mean = torch.tensor(mean)
    layer.running_var = torch.tensor(var)
    return layer


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("mean", "var", "said"),
    [
        ([0.0, 0.0], [1.0, 1.0], ""),
        ([0.0, NAN], [1.0, 1.0], "mean is NaN or infinite in 1 channels"),
        ([0.0, 0.1], [INF, NAN], "variance is NaN or infinite in 2 channels"),
        ([0.0, 0.1], [1.0, -1.0], "variance is negative in 1 channels"),
        ([0.0, 0.1], [1.0, 0.0], ""),
    ],
)
def test_defects(mean: list[float], var: list[float], said: str) -> None:
    (layer,) = batchnorm.layers(with_statistics(mean, var))
    assert batchnorm.defect(layer) == said


def test_untrained_and_dead() -> None:
    (fresh,) = batchnorm.layers(with_statistics([0.0, 0.0], [1.0, 1.0]))
    (dead,) = batchnorm.layers(with_statistics([0.0, 0.0], [1.0, 0.0]))
    assert batchnorm.is_untrained(fresh)
    assert not batchnorm.is_untrained(dead)
    assert batchnorm.dead_channels(dead) == 1
    assert batchnorm.dead_channels(fresh) == 0


def test_require_statistics_says_why() -> None:
    good = with_statistics([0.0, 0.1], [1.0, 2.0])
    batchnorm.require_statistics(nn.Sequential(good, nn.BatchNorm2d(3)), name="net")
    for model, reason in [
        (nn.Sequential(nn.LayerNorm(3)), "it has no batch norm, so"),
        (nn.Sequential(nn.BatchNorm2d(3)), "all 1 batch-norm layers look untrained"),
        (nn.Sequential(good, with_statistics([0.0, 0.1], [-1.0, 1.0])), "1 of 2 .* broken"),
    ]:
        with pytest.raises(NoBatchNormError, match=reason):
            batchnorm.require_statistics(model, name="net")
