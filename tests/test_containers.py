"""Which entry of a training checkpoint is taken for its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dreamkd import containers

PARAMETERS = {"fc.weight": torch.ones(2, 3)}
ALL = {**PARAMETERS, "bn.running_var": torch.ones(2)}
#: Two entries of a checkpoint, and the one that is taken.
PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "average": ({"model": ALL, "ema": ALL}, "ema"),
    # Whose statistics were never averaged, so that there is no such network.
    "parameters": ({"model": ALL, "ema": PARAMETERS}, "model"),
    "no statistics": ({"model": PARAMETERS, "ema": PARAMETERS}, "ema"),
    "numbers": ({"model": PARAMETERS, "ema": {"decay": 0.9, "shadow_params": []}}, "model"),
    "empty": ({"model": PARAMETERS, "state_dict_ema": {}}, "model"),
    "none": ({"model": PARAMETERS, "model_ema": None}, "model"),
    "nothing": ({"epoch": 3}, ""),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_an_average_is_taken_where_it_is_a_whole_network(kind: str) -> None:
    content, expected = PAIRS[kind]
    assert containers.container(content) == expected


def test_what_training_says_is_plain_values() -> None:
    options = {"model": "n", "crop_pct": torch.ones(2), "img_size": 64, "mean": (), "std": [0.5]}
    assert containers.expectations({"args": options}) == {"input_size": 64, "std": [0.5]}
    assert containers.expectations({"args": {**options, "input_size": [3, 32, 32]}}) == {
        "input_size": [3, 32, 32],
        "std": [0.5],
    }
    assert containers.expectations({"args": {"model": "n", "mean": [0.5]}}) == {}  # another's


@pytest.mark.parametrize("name", ["ema", "model_ema.net", "ema_model", "net.swa", "avg_1"])
def test_names_of_averages(name: str) -> None:
    assert containers.is_average(name)


@pytest.mark.parametrize("name", ["", "model", "schema", "avgpool", "teacher", "cinema.net"])
def test_names_of_none(name: str) -> None:
    assert not containers.is_average(name)
