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


LOSS = {"criterion.weight": torch.ones(6)}
KINDS: dict[str, tuple[Callable[[State], State], str]] = {
    "lightning": (lambda state: below("model", state), "below 'model'"),
    "beside a loss": (lambda state: below("net", state) | LOSS, "below 'net'"),
    "beside an average": (
        lambda state: below("model", state) | below("ema", {k: 0 * v for k, v in state.items()}),
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
