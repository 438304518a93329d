"""Architectures told from names and shapes, against the networks of both libraries."""

from __future__ import annotations

import json

import pytest
import torch

from dreamkd.errors import ModelError
from dreamkd.models import architectures, recognition, resolve


def shapes(name: str, num_classes: int = 7, channels: int = 1) -> dict[str, torch.Tensor]:
    """A state dict without data: recognition reads nothing else."""
    architecture = resolve(name)
    size = (channels, *architecture.defaults().input_size[1:])
    module = architecture.build(num_classes=num_classes, input_size=size, device="meta")
    return dict(module.state_dict())


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18",
        "torchvision:resnet50",
        "torchvision:densenet121",
        "torchvision:efficientnet_b0",
        "torchvision:mobilenet_v2",
        "torchvision:regnet_y_400mf",
        "torchvision:vgg11_bn",
        "torchvision:vit_b_16",
        "timm:convnext_nano",
        "timm:mobilenetv2_100",
        "timm:regnety_002",
        "timm:resnet26d",
        "timm:cifar_resnet8",
        "timm:cifar_resnet18",
        "timm:cifar_wrn40_2",
        "timm:cifar_vgg11_bn",
    ],
)
def test_known_networks_are_recognised_at_any_class_and_channel_count(name: str) -> None:
    state = shapes(name)
    found, how = recognition.recognise(state, where="t.pt")
    assert str(found) == name
    assert "names and shapes" in how
    assert recognition.sizes(found, state) == (7, 1)


def test_googlenet_is_recognised_with_its_training_heads() -> None:
    state = shapes("googlenet", channels=3)
    state |= {"aux1.fc2.weight": torch.empty(7, 1024), "aux2.fc2.weight": torch.empty(7, 1024)}
    assert recognition.recognise(state, where="t.pt")[0] == resolve("googlenet")


def test_counters_of_batches_may_be_missing() -> None:
    state = {k: v for k, v in shapes("resnet18").items() if "num_batches" not in k}
    assert recognition.recognise(state, where="t.pt")[0] == resolve("resnet18")


def test_two_that_fit_are_named_and_the_choice_is_asked_for() -> None:
    with pytest.raises(
        ModelError,
        match=r"t\.pt: timm:efficientnet_lite0 and timm:tf_efficientnet_lite0 have .*--arch",
    ):
        recognition.recognise(shapes("efficientnet_lite0"), where="t.pt")


def test_what_training_says_decides_between_two_that_fit() -> None:
    state = shapes("efficientnet_lite0")
    for hint in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        found, how = recognition.recognise(state, where="t.pt", hint=hint)
        assert str(found) == "timm:tf_efficientnet_lite0"
        assert "training" in how


def test_what_training_says_is_checked() -> None:
    found, _ = recognition.recognise(shapes("resnet18"), where="t.pt", hint="resnet50")
    assert str(found) == "torchvision:resnet18"


def test_torchvision_comes_first_and_the_others_are_named() -> None:
    found, how = recognition.recognise(shapes("resnet18"), where="t.pt")
    assert str(found) == "torchvision:resnet18"
    assert "timm:resnetblur18" in how
    assert "--arch" in how


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "count"])
def test_what_fits_nothing_is_refused(change: str) -> None:
    state = shapes("cifar_resnet8")
    if change == "missing":
        del state["bn1.weight"]
    elif change == "extra":
        state["head.weight"] = torch.empty(2)
    elif change == "shape":
        state["layer1.0.conv1.weight"] = torch.empty(16, 16, 5, 5)
    else:
        state["linear.bias"] = torch.empty(8)  # not the class count of linear.weight
    line = {
        "count": r"t\.pt is nearly timm:cifar_resnet8, with linear\.bias \[8\] instead of \[7\]"
    }
    usual = r"t\.pt: no known architecture .*--arch NAME"
    with pytest.raises(ModelError, match=line.get(change, usual)):
        recognition.recognise(state, where="t.pt")


def test_a_layer_of_another_shape_is_named() -> None:
    """Not the image size, which has no part in it."""
    state = shapes("resnet18") | {"conv1.weight": torch.empty(64, 1, 3, 3, device="meta")}
    line = (
        r"^f is nearly torchvision:resnet18, .*, with conv1\.weight \[64, 1, 3, 3\] instead of "
        r"\[64, 1, 7, 7\]; a network of your own is given from Python, by dreamkd\.Classifier\.of$"
    )
    for size in (None, (32, 32)):
        with pytest.raises(ModelError, match=line):
            recognition.recognise(state, where="f", input_size=size)


def test_a_name_that_the_index_lacks_is_still_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of timm: networks without a fingerprint are compared one by one."""
    index = [
        (free, {key: names for key, names in hashes.items() if "timm:cifar_resnet8" not in names})
        for free, hashes in recognition._index()
    ]
    monkeypatch.setattr(recognition, "_index", lambda: index)
    found, _ = recognition.recognise(shapes("cifar_resnet8"), where="t.pt")
    assert str(found) == "timm:cifar_resnet8"


def test_a_name_that_only_the_index_has_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    index = [
        (free, {key: ["timm:of_another_version", *names] for key, names in hashes.items()})
        for free, hashes in recognition._index()
    ]
    monkeypatch.setattr(recognition, "_index", lambda: index)
    found, _ = recognition.recognise(shapes("cifar_resnet8"), where="t.pt")
    assert str(found) == "timm:cifar_resnet8"


def test_the_index_holds_our_networks_and_both_libraries() -> None:
    entries = json.loads(recognition.INDEX.read_text())["fingerprints"]
    names = [n for entry in entries for group in entry["architectures"].values() for n in group]
    assert len(names) == len(set(names))
    ours = {str(a) for a in architectures() if a.name.startswith("cifar_")}
    assert ours <= set(names)
    assert sum(name.startswith("torchvision:") for name in names) >= 80
    assert sum(name.startswith("timm:") for name in names) >= 1300
