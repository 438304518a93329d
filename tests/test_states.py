"""A network in training, on disk: tensors and facts come back, or are damaged."""

from pathlib import Path

import pytest
import torch

from dreamkd import checkpoint, states
from dreamkd.errors import ModelError

TENSORS = {"a": torch.arange(3.0), "b": torch.tensor(7)}
FACTS = {"step": 5, "seconds": 0.1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    states.write(tmp_path / "state.safetensors", TENSORS, FACTS)
    return tmp_path / "state.safetensors"


def test_what_was_written_is_read(path: Path) -> None:
    tensors, facts = states.read(path)
    assert facts == FACTS
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({"a": torch.arange(3.0) + 1}, {}),
        ({"c": torch.tensor(7)}, {}),
        ({}, {"facts": '{"seconds": 0.1, "step": 6}'}),
        ({}, {"facts": ""}),
        ({}, {"sha256": "0" * 64}),
    ],
)
def test_tensors_and_facts_are_vouched_for_together(
    path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]
) -> None:
    saved = checkpoint.read(path)
    checkpoint.write(path, {**saved.state, **tensors}, {**saved.metadata, **facts})
    with pytest.raises(ModelError, match=f"^{path} is damaged$"):
        states.read(path)
