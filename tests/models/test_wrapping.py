"""Networks inside what a training framework saved around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dreamkd import models
from dreamkd.errors import ModelError

State = dict[str, Tensor]


def below(name: str, state: State) -> State:
    return {f"{name}.{key}": tensor for key, tensor in state.items()}


def dropped_out(state: State) -> State:
    """As of a network whose `fc` was replaced by dropout and a linear layer."""
    return {key.replace("fc.", "fc.1."): tensor for key, tensor in state.items()}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(tensor) for key, tensor in state.items()}


LOSS = {"criterion.weight": torch.ones(6)}
KINDS: dict[str, tuple[Callable[[State], State], str]] = {
    "lightning": (lambda state: below("model", state), "below 'model'"),
    "beside a loss": (lambda state: below("net", state) | LOSS, "below 'net'"),
    "an average": (
        lambda state: below("model", zeros(state)) | below("ema", state),
        "below 'ema' (the average of its weights)",
    ),
    "an average in a module": (
        lambda state: below("net", zeros(state)) | below("model_ema.module", state),
        "below 'model_ema' (the average of its weights)",
    ),
    "an average beside its network": (
        lambda state: zeros(state) | below("swa_model.net", state),
        "below 'swa_model.net' (the average of its weights)",
    ),
    "an average below a name": (
        lambda state: below("model.a", zeros(state)) | LOSS | below("ema_model.a", state),
        "below 'ema_model.a' (the average of its weights)",
    ),
    "twice the same": (
        lambda state: below("model", state) | below("attacker.model", state),
        "below 'model'",
    ),
    "twice": (lambda state: below("model.backbone", state) | LOSS, "below 'model.backbone'"),
    "compiled": (lambda state: below("model._orig_mod", state), "below 'model'"),
    "head": (dropped_out, "fc.1 taken for fc"),
    "both": (lambda state: below("model", dropped_out(state)), "below 'model', fc.1 taken for fc"),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=6).eval()


@pytest.mark.parametrize("arch", [None, "resnet18"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_found_inside_what_holds_it(
    network: nn.Module, tmp_path: Path, kind: str, arch: str | None
) -> None:
    wrap, said = KINDS[kind]
    torch.save(wrap(network.state_dict()), tmp_path / "t.pt")
    found = models.load(tmp_path / "t.pt", arch=arch)
    assert (found.card.architecture, found.card.num_classes) == ("torchvision:resnet18", 6)
    assert said in found.card.source
    inputs = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.module(inputs), network(inputs))


def test_a_head_of_two_layers_is_another_network(network: nn.Module, tmp_path: Path) -> None:
    state = dropped_out(network.state_dict()) | {"fc.3.weight": torch.ones(6, 6)}
    torch.save(state, tmp_path / "t.pt")
    with pytest.raises(ModelError, match="no known architecture has its"):
        models.load(tmp_path / "t.pt")
    with pytest.raises(ModelError, match=r"2 missing \(fc\.weight, fc\.bias\)"):
        models.load(tmp_path / "t.pt", arch="resnet18")


TWO: dict[str, tuple[Callable[[State], State], str]] = {
    "student": (
        lambda state: below("student", state) | below("teacher", zeros(state)),
        "below 'student' and below 'teacher'",
    ),
    "teacher": (
        lambda state: below("teacher", zeros(state)) | below("student", state),
        "below 'teacher' and below 'student'",
    ),
    "further in": (
        lambda state: below("a.encoder_q", state) | below("a.encoder_k", zeros(state)),
        "below 'a.encoder_q' and below 'a.encoder_k'",
    ),
    "beside": (
        lambda state: state | below("teacher", zeros(state)),
        "below 'teacher' and at its top",
    ),
    "averages": (
        lambda state: below("net", state) | below("ema_1", state) | below("ema_2", zeros(state)),
        "below 'ema_1' and below 'ema_2'",
    ),
}


@pytest.mark.parametrize("arch", [None, "resnet18"])
@pytest.mark.parametrize("kind", TWO)
def test_of_two_networks_none_is_picked(
    network: nn.Module, tmp_path: Path, kind: str, arch: str | None
) -> None:
    hold, said = TWO[kind]
    torch.save(hold(network.state_dict()), tmp_path / "t.pt")
    line = rf"t\.pt holds 2 networks, {said}; save the state_dict\(\) of the one you mean in a file"
    with pytest.raises(ModelError, match=line):
        models.load(tmp_path / "t.pt", arch=arch)


def test_of_two_architectures_the_one_named_is_taken(network: nn.Module, tmp_path: Path) -> None:
    other = torchvision.models.resnet34(num_classes=6).state_dict()
    state = below("teacher", other) | below("student", network.state_dict())
    torch.save(state, tmp_path / "t.pt")
    with pytest.raises(ModelError, match="below 'teacher' and below 'student'"):
        models.load(tmp_path / "t.pt")
    assert "below 'student'" in models.load(tmp_path / "t.pt", arch="resnet18").card.source


def test_an_average_in_an_entry_of_its_own_is_said(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    torch.save({"model": zeros(state), "ema": state}, tmp_path / "t.pt")
    source = models.load(tmp_path / "t.pt").card.source
    assert "resnet18 under 'ema' (the average of its weights), recognised" in source


def test_names_of_any_depth_hold_nothing_and_are_no_trouble(tmp_path: Path) -> None:
    torch.save({"a." * 3000 + "weight": torch.zeros(3, 3)}, tmp_path / "deep.pt")
    with pytest.raises(ModelError, match="no known architecture has its 1 entries"):
        models.load(tmp_path / "deep.pt")
