"""What a caller says of a network is checked as on the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dreamkd import models
from dreamkd.errors import ConfigError, ModelError
from dreamkd.models import Classifier

DIGITS = "digits_resnet14"  # of ten classes and one channel
LEGAL: list[tuple[str, Any, Any]] = [
    ("mean", 0.3, (0.3,)),
    ("mean", [0.3], (0.3,)),
    ("mean", np.array([0.5]), (0.5,)),
    ("std", torch.tensor(0.5), (0.5,)),
    ("input_size", 20, (1, 20, 20)),
    ("input_size", np.int64(20), (1, 20, 20)),
    ("input_size", torch.Size([1, 20, 24]), (1, 20, 24)),
    ("num_classes", "10", 10),
    ("class_names", list("abcdefghij"), tuple("abcdefghij")),
]
ILLEGAL: list[tuple[str, Any, str]] = [
    ("mean", (0.5, 0.5), "--mean: 2 given, but the model has 1 channels; give one for each, or"),
    ("std", (0.5, 0.5), "--std: 2 given, but the model has 1 channels; give one for each, or"),
    ("class_names", ("a", "b"), "--class-names: 2 given, but the model has 10 classes; give one"),
    ("class_names", "names.txt", "--class-names: 'names.txt' is not a list of names"),
    ("class_names", 3, "--class-names: '3' is not a list of names"),
    ("mean", "grey", "--mean: 'grey' is not a number"),
    ("std", 0, "--std: 0 is out of range"),
    ("input_size", (1, 2, 3, 4), r"--input-size: \(1, 2, 3, 4\) is not H, \(H, W\) or \(C, H, W\)"),
    ("input_size", (), r"--input-size: \(\) is not H"),
    ("num_classes", True, "--num-classes: True is not a whole number"),
    ("interpolation", "bicubik", "--interpolation: 'bicubik' is not one of .*'bicubic'"),
    ("crop_pct", 2, "--crop-pct: 2 is out of range"),
    ("device", "cuda", "device: 'cuda' is not one of cpu, meta; networks are loaded to the CPU"),
    ("device", torch.device("meta"), "device: 'meta' holds no weights; pass pretrained=False"),
]


@pytest.mark.parametrize(("name", "value", "expected"), LEGAL)
def test_values_are_python_s_or_text(name: str, value: Any, expected: Any) -> None:
    card = models.load(DIGITS, **{name: value}).card
    assert getattr(card, name) == expected


@pytest.mark.parametrize(("name", "value", "line"), ILLEGAL)
def test_what_is_illegal_is_one_line_that_begins_with_it(name: str, value: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        models.load(DIGITS, **{name: value})


@pytest.mark.parametrize("name", ["mean", "std", "class_names"])
def test_it_is_one_for_each_of_a_name_s_too(name: str) -> None:
    values = ("0.5", "0.5") if name == "class_names" else (0.5, 0.5)
    with pytest.raises(ConfigError, match=r"^--.*: 2 given, but the model has (3|10) c"):
        models.load("cifar_resnet8", pretrained=False, **{name: values})


def test_a_network_is_no_name() -> None:
    with pytest.raises(ConfigError, match=r"^MODEL: a value of type Linear is not text$"):
        models.load(nn.Linear(2, 2))


def own(**changes: Any) -> Classifier:
    size = {"num_classes": 2, "input_size": (1, 4, 4), "mean": 0.5, "std": 0.25}
    return Classifier.of(nn.Linear(16, 2), name="mine", **size | changes)


def test_of_a_network_of_one_s_own() -> None:
    assert (own().card.mean, own().card.std) == ((0.5,), (0.25,))
    with pytest.raises(ConfigError, match=r"^--mean: 1 given, but the model has 3 channels"):
        own(input_size=(3, 4, 4))
    with pytest.raises(ConfigError, match=r"^--class-names: 1 given, but the model has 2 classes"):
        own(class_names=("a",))
    with pytest.raises(ModelError, match=r"^input_size is \(4, 4\); it must be \(C, H, W\) \(mine"):
        own(input_size=4)
    with pytest.raises(
        ConfigError, match=r"^mean: None is given; a network of one's own needs it$"
    ):
        own(mean=None)
    names = np.array(["a", "b"])
    card = own(class_names=names, interpolation="bilinear", crop_pct=0.875).card
    assert (card.class_names, card.interpolation, card.crop_pct) == (("a", "b"), "bilinear", 0.875)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("resnet18", "mine: str is no network; give a torch.nn.Module"),
        (nn.Linear, "mine: the class Linear is no network; give a torch.nn.Module"),
        (nn.Linear(2, 2, device="meta"), "mine: it is on the meta device, without weights; give a"),
    ],
)
def test_what_is_no_network_with_weights_is_refused(module: Any, line: str) -> None:
    card = {"num_classes": 2, "input_size": (1, 4, 4), "mean": 0.5, "std": 0.25}
    with pytest.raises(ModelError, match=f"^{line}"):
        Classifier.of(module, name="mine", **card)
    with pytest.raises(ConfigError, match=r"^name: '' is not text"):
        Classifier.of(nn.Linear(2, 2), name="", **card)


def test_nothing_is_no_name() -> None:
    with pytest.raises(ConfigError, match=r"^MODEL: None is not text"):
        models.load(None)
