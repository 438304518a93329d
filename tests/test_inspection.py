"""What `inspect` finds in networks whose layers are known, and how it judges them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn

from dreamkd import assessment, models
from dreamkd.config import InspectConfig
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.errors import ModelError, NoBatchNormError, RunError
from dreamkd.inspection import Inspection, inspect
from dreamkd.models import Card, Classifier


def classifier(module: nn.Module, *, size: int = 8, pretrained: bool = True) -> Classifier:
    card = Card(
        architecture="test:net",
        weights="file t.pt",
        source="a network of the tests",
        num_classes=2,
        input_size=(3, size, size),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation="bicubic",
        crop_pct=1.0,
        parameters=0,
        pretrained=pretrained,
    )
    return Classifier(module.eval(), card)


class Net(nn.Module):
    """Runs `late` before `early`, `twice` two times at two sizes, and `unused` never."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm1d(7)
        self.twice = nn.BatchNorm2d(3)
        self.late = FrozenBatchNormAct2d(3)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.group = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.late(x))
        x = self.twice(nn.functional.avg_pool2d(x, 2))
        return self.group(self.early(self.conv(x))).mean((2, 3))


def trained(module: nn.Module) -> nn.Module:
    """Give every layer statistics that no initialisation has."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(getattr(layer, "running_var", None), Tensor):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return module


def test_layers_come_in_execution_order_with_calls_and_resolution() -> None:
    found = inspect(classifier(trained(Net())))
    rows = [(x.name, x.kind, x.channels, x.resolution, x.calls) for x in found.layers]
    assert rows == [
        ("late", "FrozenBatchNormAct2d", 3, (8, 8), 1),
        ("twice", "BatchNorm2d", 3, (8, 8), 2),
        ("early", "BatchNorm2d", 4, (2, 2), 1),
        ("unused", "BatchNorm1d", 7, None, 0),
    ]
    assert found.never_ran == ("unused",)
    assert found.repeated == ("twice",)
    assert found.norms == {"GroupNorm": 1}
    assert found.invertible
    assert found.verdict == "invertible: 4 batch-norm layers; 1 never run"
    assert found.error is None


def test_statistics_are_summarised() -> None:
    net = trained(Net())
    net.late.running_mean.copy_(torch.tensor([-1.0, 0.0, 4.0]))
    net.late.running_var.copy_(torch.tensor([1.0, 2.0, 3.0]))
    first = inspect(classifier(net)).layers[0]
    assert dataclasses.astuple(first.running_mean) == (-1, 1, 4)
    assert dataclasses.astuple(first.running_var) == (1, 2, 3)
    assert (first.untrained, first.broken) == (False, "")


@pytest.mark.parametrize(
    ("statistic", "value", "said"),
    [
        ("running_mean", float("nan"), "mean is NaN or infinite in 1 channels"),
        ("running_var", float("inf"), "variance is NaN or infinite in 1 channels"),
        ("running_var", -0.5, "variance is negative in 1 channels"),
    ],
)
def test_broken_statistics_are_flagged(statistic: str, value: float, said: str) -> None:
    net = trained(Net())
    getattr(net.early, statistic)[2] = value
    found = inspect(classifier(net))
    flagged = {layer.name: layer.broken for layer in found.layers}
    assert flagged == {"late": "", "twice": "", "early": said, "unused": ""}
    assert not found.invertible
    assert found.obstacle == f"1 of 4 batch-norm layers are broken (early: {said})"
    assert isinstance(found.error, NoBatchNormError)


def test_dead_channels_are_counted_and_no_obstacle() -> None:
    net = trained(Net())
    net.early.running_var[1:3] = 0
    found = inspect(classifier(net))
    assert [layer.dead_channels for layer in found.layers] == [0, 0, 2, 0]
    assert (
        found.verdict
        == "invertible: 4 batch-norm layers; 1 have dead channels (variance 0); 1 never run"
    )


def test_untrained_layers_are_flagged() -> None:
    found = inspect(classifier(Net()))
    assert all(layer.untrained for layer in found.layers)
    assert found.obstacle == "all 4 batch-norm layers look untrained (mean 0, variance 1)"
    assert found.verdict == f"not, because {found.obstacle}"
    net = trained(Net())
    net.early.reset_running_stats()
    found = inspect(classifier(net))
    assert [layer.name for layer in found.layers if layer.untrained] == ["early"]
    assert "1 look untrained" in found.verdict


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_random_weights_are_judged_by_architecture_alone(device: str) -> None:
    found = inspect(models.load("cifar_resnet8", pretrained=False, device=device))
    assert found.verdict == (
        "invertible once trained: 7 batch-norm layers "
        "(of the architecture alone, its weights are random)"
    )
    assert found.error is None
    assert [layer.resolution for layer in found.layers] == [(32, 32)] * 3 + [(16, 16)] * 2 + [
        (8, 8)
    ] * 2


def test_no_batch_norm_names_the_norms_found_and_has_an_error_to_raise() -> None:
    found = inspect(models.load("timm:convnext_atto", pretrained=False, device="meta"))
    assert found.layers == ()
    assert not found.invertible
    assert found.verdict.startswith("not, because it has no batch norm (it has ")
    assert "LayerNorm" in found.verdict
    assert isinstance(found.error, NoBatchNormError)
    assert "timm:convnext_atto" in str(found.error)


def test_batch_norm_without_running_statistics_is_another_norm() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3))
    found = inspect(classifier(net))
    assert found.verdict == (
        "not, because it has no batch norm (it has 1 BatchNorm2d, 1 InstanceNorm2d)"
    )


def test_no_norm_at_all() -> None:
    found = inspect(classifier(nn.Sequential(nn.Conv2d(3, 2, 1))))
    assert found.verdict == "not, because it has no batch norm (it has no norm at all)"


def test_one_class_is_no_choice() -> None:
    net = models.load("cifar_resnet8", pretrained=False, num_classes=1, input_size=(3, 32, 32))
    found = inspect(net)
    assert found.verdict == (
        "not, because it has one class, and a softmax over one is 1 whatever the image"
    )
    assert isinstance(found.error, ModelError)


def test_a_size_the_network_cannot_take_is_a_model_error() -> None:
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4)))
    with pytest.raises(ModelError, match=r"does not run at input 3x2x2.*--input-size"):
        inspect(classifier(net, size=2))


class Stubborn(nn.Module):
    """Reads a value in its forward pass, which the meta device cannot."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, **_: object) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.bn = nn.BatchNorm2d(in_chans)
        self.fc = nn.Linear(in_chans, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        return self.fc(x.mean((2, 3)) if float(x.sum()) >= 0 else x.amax((2, 3)))


def test_what_the_meta_device_cannot_run_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = timm.models._registry._model_entrypoints
    monkeypatch.setitem(registered, "resnet10t", lambda pretrained=False, **k: Stubborn(**k))
    found = inspect(models.load("timm:resnet10t", pretrained=False, device="meta"))
    assert [(layer.name, layer.calls) for layer in found.layers] == [("bn", 1)]


def test_inspection_leaves_the_network_alone() -> None:
    net = trained(Net())
    made = classifier(net)
    before = made.sha256()
    inspect(made)
    assert made.sha256() == before
    assert not net.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_json_holds_everything_in_plain_values() -> None:
    net = trained(Net())
    net.early.running_mean[0] = float("nan")
    found = inspect(classifier(net))
    content = json.loads(json.dumps(found.to_json()))
    assert content["model"]["architecture"] == "test:net"
    assert content["model"]["input_size"] == [3, 8, 8]
    assert math.isnan(content["layers"][2]["running_mean"]["min"])
    assert content["layers"][3]["resolution"] is None
    assert (content["never_ran"], content["repeated"]) == (["unused"], ["twice"])
    assert {field.name for field in dataclasses.fields(Inspection)} - {"card"} <= content.keys()


def test_memory_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("dreamkd.inspection.inspect", too_large)
    with pytest.raises(RunError, match="lower --input-size"):
        assessment.inspect(InspectConfig(model="digits_resnet14"))


def test_a_bundled_teacher_is_invertible() -> None:
    found = inspect(models.load("digits_resnet14"))
    assert found.verdict == "invertible: 13 batch-norm layers"
    assert found.layers[0].resolution == (16, 16)


def test_images_are_compared_with_what_is_stored(digits: Classifier) -> None:
    """By hand: moments of every input, as the batch has them."""
    images = open_images("sklearn:digits", preprocessing=Preprocessing.of(digits.card))
    found = inspect(digits, images, batch_size=250)
    compared = found.compared
    assert compared is not None
    assert (compared.images, compared.batches, compared.batch_size) == (600, 2, 250)
    assert [*compared.layers] == [layer.name for layer in found.layers]
    assert {x.name: x.distance for x in found.layers} == compared.layers
    assert sum(compared.layers.values()) == pytest.approx(compared.r_feature, rel=1e-5)
    assert 0 < compared.r_feature_chance < compared.r_feature
    whole = inspect(digits, images, batch_size=10_000)
    assert whole.compared is not None
    assert (whole.compared.batches, whole.compared.batch_size, whole.compared.spread) == (1, 600, 0)
    x = (stack(images)[0].float() / 255 - digits.card.mean[0]) / digits.card.std[0]
    first = digits.module.get_submodule("bn1")
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        digits.module(x)
    handle.remove()
    mean, var = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3), correction=0)
    want = (mean - first.running_mean).norm() + (var - first.running_var).norm()
    assert whole.compared.layers["bn1"] == pytest.approx(float(want), rel=1e-4)


def test_what_cannot_be_inverted_is_compared_with_nothing() -> None:
    found = inspect(
        classifier(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())),
        open_images("sklearn:digits", preprocessing=Preprocessing(input_size=(3, 8, 8))),
    )
    assert (found.invertible, found.compared) == (False, None)
