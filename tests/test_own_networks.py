"""Networks as people write them: whatever runs in torch is inverted, distilled and evaluated."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dreamkd
from dreamkd.data import Preprocessing, open_images
from dreamkd.engine import Runtime, fixed
from dreamkd.engine.modules import lay_out
from dreamkd.errors import ModelError, NoBatchNormError
from dreamkd.evaluation import evaluate
from dreamkd.models import Classifier
from tests.conftest import PLAIN

QUICK = {**PLAIN, "image_steps": 2, "image_batch_size": 6}
STUDENT = {"first_batches": 1, "steps": 4, "batch_size": 4, "images": "pixels"}


class Textbook(nn.Module):
    """Two convolutions; flattened as tutorials do, which asks for the usual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.view(-1, 8 * 4 * 4))


class ViewedFirst(Textbook):
    """Flattens the images themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(len(x), -1).view(-1, 3, 12, 12))


class AsksItsLayers(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.bn1, nn.BatchNorm2d)
        assert self.bn1.num_features == self.conv1.out_channels
        return super().forward(x)


class CallsByName(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(input=self.conv2(self.bn1(input=self.conv1(x))))
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class KeepsAList(Textbook):
    def __init__(self) -> None:
        super().__init__()
        self.order = [self.conv1, self.bn1, F.relu, self.conv2, self.bn2]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class PartlyFunctional(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        x, bn = self.bn1(self.conv1(x)), self.bn2
        x = F.batch_norm(
            self.conv2(x),
            bn.running_mean,
            bn.running_var,
            bn.weight,
            bn.bias,
            bn.training,
            bn.momentum,
            bn.eps,
        )
        return self.fc(F.max_pool2d(x, 2).flatten(1))


class ChangesItsInput(Textbook):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


KINDS = (
    Textbook,
    ViewedFirst,
    AsksItsLayers,
    CallsByName,
    KeepsAList,
    PartlyFunctional,
    ChangesItsInput,
)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def trained(kind: Callable[[], nn.Module]) -> Classifier:
    """With statistics of noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind().train()
        for _ in range(3):
            module(torch.randn(8, 3, 12, 12))
    size, half = (3, 12, 12), (0.5, 0.5, 0.5)
    return Classifier.of(module, name="mine", num_classes=3, input_size=size, mean=half, std=half)


@kinds
def test_it_is_inverted(kind: type[nn.Module], tmp_path: Path) -> None:
    network = trained(kind)
    run = dreamkd.invert(network, per_class=2, out=tmp_path / "run", **QUICK)
    assert len([*dreamkd.read(run)]) == 6


@kinds
def test_the_fixed_copy_computes_the_same(kind: type[nn.Module]) -> None:
    network = trained(kind).module
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    copy = fixed(network, runtime=Runtime("cpu", "fp32", 1), input_size=(3, 12, 12))
    given = x.clone().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(copy(given), network(x), atol=1e-5)


@pytest.mark.parametrize("kind", [Textbook, ViewedFirst, KeepsAList])
def test_it_learns_competes_and_is_evaluated(kind: type[nn.Module], tmp_path: Path) -> None:
    teacher, student = trained(AsksItsLayers), trained(kind)
    found = dreamkd.distill(teacher, student, rounds=2, out=tmp_path / "run", **QUICK, **STUDENT)
    assert found.steps == 4
    pictures = open_images(str(tmp_path / "run"), preprocessing=Preprocessing.of(student.card))
    strides = [weight.stride() for weight in student.module.parameters()]
    assert evaluate(student, pictures, device="cpu").count == found.images
    assert [weight.stride() for weight in student.module.parameters()] == strides
    assert not student.module._forward_pre_hooks


def test_channels_come_last_where_the_network_bears_it() -> None:
    for kind, last in ((AsksItsLayers, False), (KeepsAList, True)):
        module = trained(kind).module
        undo = lay_out(module, (3, 12, 12))
        weight = module.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is last
        where = weight.data_ptr()
        lay_out(module, (3, 12, 12))()
        assert weight.data_ptr() == where  # recorded steps read it there
        undo()
        assert weight.is_contiguous()
        assert not module._forward_pre_hooks


def test_layers_that_are_never_called_are_named_as_the_reason(tmp_path: Path) -> None:
    class Functional(Textbook):
        def forward(self, x: Tensor) -> Tensor:
            for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
                x = F.batch_norm(conv(x), bn.running_mean, bn.running_var)
            return self.fc(F.max_pool2d(x, 2).flatten(1))

    network = trained(Textbook)
    network.module.__class__ = Functional
    with pytest.raises(NoBatchNormError, match="none of its 2 batch-norm layers runs"):
        dreamkd.invert(network, per_class=2, out=tmp_path / "run", **QUICK)
    run = dreamkd.invert(network, method="deepdream", per_class=2, out=tmp_path / "run", **QUICK)
    assert len([*dreamkd.read(run)]) == 6


def test_torchscript_is_refused_in_one_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is of the past
        module = torch.jit.trace(Textbook().eval(), torch.zeros(1, 3, 12, 12))
    with pytest.raises(ModelError, match="TorchScript shows no layers"):
        trained(lambda: module)


def test_the_global_random_stream_stays(tmp_path: Path) -> None:
    teacher, before = trained(KeepsAList), torch.get_rng_state()
    dreamkd.invert(teacher, per_class=2, out=tmp_path / "images", **QUICK)
    dreamkd.distill(teacher, "cifar_resnet8", rounds=1, out=tmp_path / "run", **QUICK, **STUDENT)
    assert torch.equal(torch.get_rng_state(), before)
