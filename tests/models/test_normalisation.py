"""A normalisation that lies beside the network is the network's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamkd import models

State = dict[str, Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of a cifar_resnet8


def below(name: str, state: State) -> State:
    return {f"{name}.{key}": tensor for key, tensor in state.items()}


def layer(*shape: int, mean: float = 0, std: float = 1) -> State:
    """Buffers of MEAN and STD, moved."""
    values = {"mean": torch.tensor(MEAN) + mean, "std": torch.tensor(STD) * std}
    return {name: tensor.reshape(shape) for name, tensor in values.items()}


def robust(state: State) -> State:
    return {f"new_{name}": tensor for name, tensor in state.items()}


BESIDE: dict[str, tuple[Callable[[State], State], str]] = {
    "a sequence": (
        lambda state: below("0", layer(3)) | below("1", state),
        "below '1'; mean, std from its '0.mean', '0.std'",
    ),
    "a module": (
        lambda state: layer(1, 3, 1, 1) | below("model", state),
        "below 'model'; mean, std from its 'mean', 'std'",
    ),
    "the network itself": (
        lambda state: layer(3, 1, 1) | state,
        "shapes; mean, std from its 'mean', 'std'",
    ),
    "a layer of the network": (
        lambda state: below("norm", layer(3, 1, 1)) | state,
        "shapes; mean, std from its 'norm.mean', 'norm.std'",
    ),
    "half": (
        lambda state: below("0", {k: v.half() for k, v in layer(3).items()}) | below("1", state),
        "from its '0.mean', '0.std'",
    ),
    "robustness": (
        lambda state: (
            below("normalizer", robust(layer(3, 1, 1)))
            | below("model", state)
            | below("attacker.normalize", robust(layer(3, 1, 1)))
            | below("attacker.model", state)
        ),
        "mean, std from its 'attacker.normalize.new_mean', 'attacker.normalize.new_std'",
    ),
    "the average's own": (
        lambda state: (
            below("model.0", layer(3, mean=0.1))
            | below("model.1", state)
            | below("ema.0", layer(3))
            | below("ema.1", state)
        ),
        "below 'ema.1' (the average of its weights); mean, std from its 'ema.0.mean', 'ema.0.std'",
    ),
}


def network() -> State:
    return models.load("cifar_resnet8", pretrained=False).module.state_dict()


@pytest.mark.parametrize("arch", [None, "cifar_resnet8"])
@pytest.mark.parametrize("kind", BESIDE)
def test_it_is_taken_and_said(tmp_path: Path, kind: str, arch: str | None) -> None:
    hold, said = BESIDE[kind]
    torch.save(hold(network()), tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt", arch=arch).card
    assert card.mean == pytest.approx(MEAN, abs=1e-3 if kind == "half" else 0)
    assert card.std == pytest.approx(STD, abs=1e-3 if kind == "half" else 0)
    assert said.replace("shapes", "says" if arch else "shapes") in card.source
    assert card.source.endswith("; input size as usual for it, since the file does not say")


def test_one_value_is_for_all_channels(tmp_path: Path) -> None:
    one = {"mean": torch.tensor(0.5), "std": torch.tensor([0.25])}
    torch.save(one | below("model", network()), tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt").card
    assert (card.mean, card.std) == ((0.5,) * 3, (0.25,) * 3)


def test_what_the_caller_says_comes_first(tmp_path: Path) -> None:
    torch.save(layer(3) | below("model", network()), tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt", mean=(0.1, 0.2, 0.3)).card
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), STD)
    assert "; std from its 'std'; input size as" in card.source


UNFIT = {
    "of 255": (below("norm", layer(3, std=255)), "'norm.mean', 'norm.std' are not of pixels in"),
    "negative": (below("norm", layer(3, mean=-1)), "'norm.mean', 'norm.std' are not of pixels in"),
    "nothing": (below("norm", layer(3, std=0)), "'norm.mean', 'norm.std' are not of pixels in"),
    "two": (
        below("a", layer(3)) | below("b", layer(3, mean=0.1)),
        "'a.mean', 'a.std', 'b.mean', 'b.std' disagree",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_meant_is_left_out_with_a_word(tmp_path: Path, kind: str) -> None:
    beside, said = UNFIT[kind]
    torch.save(beside | below("model", network()), tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt").card
    assert (card.mean, card.std) == USUAL
    assert f"since the file does not say; {said}" in card.source
    assert card.source.endswith(": pass --mean and --std")
    told = models.load(tmp_path / "t.pt", mean=MEAN, std=STD).card
    assert (told.mean, told.std) == (MEAN, STD)
    assert said not in told.source


def test_values_of_another_count_are_of_something_else(tmp_path: Path) -> None:
    other = {"queue.mean": torch.ones(16), "queue.std": torch.ones(16)}
    torch.save(other | below("model", network()), tmp_path / "t.pt")
    card = models.load(tmp_path / "t.pt").card
    assert (card.mean, card.std) == USUAL
    assert "queue" not in card.source
