"""Copies of networks: what they share, and what may not keep them from being made."""

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

from dreamkd.copying import copied, twin
from dreamkd.errors import ModelError

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class KeepsFeatures(nn.Module):
    """Keeps what it computed, as people do to look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.norm(self.conv(x))
        self.seen.append(self.features)
        return self.head(self.features.mean((2, 3)))


def weight_normed() -> nn.Module:
    """Its weight is computed before each pass, and kept beside what it is computed from."""
    model = KeepsFeatures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is of the past
        model.conv = nn.utils.weight_norm(model.conv)
    return model


def after_a_step(model: nn.Module) -> nn.Module:
    model(IMAGES).sum().backward()
    return model.eval()


@pytest.mark.parametrize("make", [copied, twin])
@pytest.mark.parametrize("kind", [KeepsFeatures, weight_normed])
def test_what_a_pass_left_behind_does_not_hinder(make, kind) -> None:
    model = after_a_step(kind())
    again = make(model)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.seen[0] is not model.seen[0]
    assert torch.equal(again.seen[0], model.seen[0])


def test_a_copy_has_memory_of_its_own_and_the_same_modes() -> None:
    model = KeepsFeatures()
    model.norm.eval()
    again = copied(model)
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    for name, values in model.state_dict().items():
        assert again.state_dict()[name].data_ptr() != values.data_ptr()


def test_a_twin_shares_weights_and_nothing_else() -> None:
    model = KeepsFeatures()
    model.head.bias.requires_grad_(False)
    again = twin(model)
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    for name, values in model.named_parameters():
        assert again.get_parameter(name).data_ptr() == values.data_ptr()
    for name, values in model.named_buffers():
        assert again.get_buffer(name).data_ptr() != values.data_ptr()
    assert not any(module.training for module in again.modules())
    assert all(module.training for module in model.modules())
    again.requires_grad_(False).to(torch.float64).register_forward_pre_hook(lambda *_: None)
    assert model.conv.weight.requires_grad
    assert {p.dtype for p in (*model.parameters(), model.norm.running_mean)} == {torch.float32}
    assert not model._forward_pre_hooks


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    for make in (copied, twin):
        again = make(model)
        assert again[0].weight is again[1].weight
        assert again[0].weight is not model[0].weight


def test_what_was_compiled_is_copied_as_it_was_before() -> None:
    model = after_a_step(KeepsFeatures())
    names, expected = list(model.state_dict()), model(IMAGES)
    model.norm = torch.compile(model.norm, backend="eager")
    whole = torch.compile(model, backend="eager")
    for make in (copied, twin):
        again = make(whole)
        assert list(again.state_dict()) == names
        assert type(again) is KeepsFeatures
        assert type(again.norm) is nn.BatchNorm2d
        assert torch.equal(again(IMAGES), expected)


def test_a_forward_that_was_compiled_alone_is_that_of_the_copy() -> None:
    model = KeepsFeatures().eval()
    expected = model(IMAGES)
    model.forward = torch.compile(model.forward, backend="eager")
    again = copied(model)
    model.head.weight.data.zero_()
    assert torch.equal(again(IMAGES), expected)


def test_weights_of_inference_mode_are_copied() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    again = twin(model)
    assert torch.equal(again.weight, model.weight)
    assert again.weight.requires_grad


def test_running_out_of_memory_is_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("dreamkd.copying.copy.deepcopy", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        copied(KeepsFeatures())


def test_what_cannot_be_copied_is_one_line() -> None:
    model = KeepsFeatures()
    model.lock = threading.Lock()
    line = "a network of type KeepsFeatures cannot be copied: cannot pickle '_thread.lock' object; "
    with pytest.raises(ModelError, match=line):
        twin(model)
