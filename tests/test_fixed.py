"""The private copy of a frozen network: the same function, the original left alone."""

import copy

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from dreamkd import batchnorm
from dreamkd.engine import Runtime, fixed
from dreamkd.engine.fixed import FixedNorm
from dreamkd.models import Classifier
from dreamkd.moments import of_batch

FP32, BF16 = (Runtime("cpu", precision, 1) for precision in ("fp32", "bf16"))
SIZE = (3, 12, 12)


def network() -> nn.Module:
    """Every kind of layer that is rewritten, with statistics that are not the default."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        timm.layers.BatchNormAct2d(8, act_layer=nn.SiLU),
        nn.BatchNorm2d(8, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(8),
        nn.Linear(8, 5),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.train()


def images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = model(x)
    (grad,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), grad


def test_float32_is_within_1e_5_of_float64() -> None:
    model = network()
    wanted = gradient(copy.deepcopy(model).eval().double(), images().double())
    got = gradient(fixed(model, runtime=FP32, input_size=SIZE), images())
    for a, b in zip(got, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_bfloat16_is_what_autocast_gives() -> None:
    model = network()
    with BF16.autocast():
        got, wanted = (
            fixed(model, runtime=BF16, input_size=SIZE)(images()),
            copy.deepcopy(model).eval()(images()),
        )
    assert got.dtype == wanted.dtype == torch.bfloat16
    assert torch.allclose(got, wanted, rtol=0.02, atol=0.02)


def test_what_the_compiler_sees_is_what_torch_s_kernel_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In half precision a norm is written twice."""
    model = fixed(network(), runtime=BF16, input_size=SIZE)
    with BF16.autocast():
        kernel = gradient(model, images())
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(torch.nn.functional, "batch_norm", None)
        written = gradient(model, images())
    for a, b in zip(kernel, written, strict=True):
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 1e-2


def test_the_gradient_of_half_precision_keeps_its_layout_and_needs_no_input() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(8).eval().requires_grad_(False)
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert tensor is not None
        tensor.uniform_(0.5, 2, generator=generator)
    x, g = (torch.randn((4, 8, 6, 6), generator=generator).bfloat16() for _ in range(2))
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    (wanted,) = torch.autograd.grad(norm(x.requires_grad_()), x, g)
    made = nn.Sequential(copy.deepcopy(norm))
    FixedNorm.take_over(made[0])
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = made(x)
    (found,) = torch.autograd.grad(y, x, g)
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert saved == []


def test_the_original_is_left_alone() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = fixed(model, runtime=BF16, input_size=SIZE)
    assert model.training
    assert not made.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert not any(p.requires_grad for p in made.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    shared = {id(p) for p in model.parameters()} & {id(p) for p in made.parameters()}
    assert not shared


def test_the_copy_is_watched_like_the_original(digits: Classifier) -> None:
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    found = []
    for model in (digits.module, fixed(digits.module, runtime=FP32, input_size=(1, 16, 16))):
        with batchnorm.watch(model) as watched, torch.no_grad():
            model(x)
            found.append(of_batch(watched.take()))
    ours, theirs = found
    assert torch.allclose(ours.offset, theirs.offset, atol=1e-5)
    assert torch.allclose(ours.square, theirs.square, rtol=1e-4)


def test_a_norm_alone_is_replaced_too() -> None:
    assert isinstance(fixed(nn.BatchNorm2d(3), runtime=FP32, input_size=SIZE), FixedNorm)


def test_unknown_kinds_stay() -> None:
    class Mine(nn.Conv2d):
        pass

    made = fixed(nn.Sequential(Mine(3, 3, 1), nn.InstanceNorm2d(3)), runtime=BF16, input_size=SIZE)
    assert [type(m) for m in made] == [Mine, nn.InstanceNorm2d]
    assert made[0].weight.dtype == torch.float32


class Table(nn.Module):
    """Keeps a table from its first run, as attention with relative positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias.expand(x.shape[-1]).clone()
        return x + self.kept["bias"]


def test_a_table_is_there_before_the_first_step() -> None:
    model = Table().eval()
    made = fixed(model, runtime=FP32, input_size=(3, 4, 4))
    assert made.kept["bias"].shape == (4,)
    assert not made.kept["bias"].requires_grad
    assert not made.kept["bias"].is_inference()
    assert not model.kept
