"""Sixty classifiers drawn at random from both libraries, inspected without weights.

The layers that `inspect` lists are compared with the batch-norm operations that a forward pass
executes, seen by torch's dispatcher and told apart by the running mean they are given.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkd import models
from dreamkd.errors import ModelError
from dreamkd.inspection import inspect
from dreamkd.models import recognition

SEED = 20200317


def drawn() -> list[Any]:
    """The draw is from the committed index, so that it is the same for every timm."""
    entries = json.loads(recognition.INDEX.read_text(encoding="utf-8"))["fingerprints"]
    names = sorted(n for e in entries for group in e["architectures"].values() for n in group)
    names = [name for name in names if ":cifar_" not in name]
    sample = random.Random(SEED).sample(names, 60)
    # All at once takes minutes; the first few run every time.
    return sample[:4] + [pytest.param(name, marks=pytest.mark.slow) for name in sample[4:]]


class ExecutedBatchNorms(TorchDispatchMode):
    """Lists the running means that batch-norm operations of the dispatcher were given."""

    def __init__(self) -> None:
        super().__init__()
        self.running_means: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Weight standardisation is computed by the same operation, without running statistics.
        if "batch_norm" in str(func) and args[3] is not None:
            self.running_means.append(args[3])
        return func(*args, **(kwargs or {}))


def executed(module: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    names = {id(buffer): name.rpartition(".")[0] for name, buffer in module.named_buffers()}
    device = next(module.parameters()).device
    with torch.no_grad(), ExecutedBatchNorms() as seen:
        module(torch.zeros(1, *input_size, device=device))
    return [names[id(mean)] for mean in seen.running_means]


@pytest.mark.parametrize("name", drawn())
def test_inspect_lists_the_layers_that_run(name: str) -> None:
    if not models.Architecture(*name.split(":")).exists():
        pytest.skip("not in the installed version")
    classes = models.resolve(name).defaults().num_classes or 10  # a feature extractor is given ten
    classifier = models.load(name, pretrained=False, num_classes=classes, device="meta")
    found = inspect(classifier)
    calls = executed(classifier.module, classifier.card.input_size)
    assert [layer.name for layer in found.layers if layer.calls] == list(dict.fromkeys(calls))
    assert {x.name: x.calls for x in found.layers if x.calls} == {n: calls.count(n) for n in calls}
    assert bool(found.layers) == found.invertible


@pytest.mark.slow
@pytest.mark.parametrize("name", drawn()[:20])
def test_its_own_weights_are_recognised(name: str) -> None:
    architecture = models.Architecture(*name.split(":"))
    if not architecture.exists():
        pytest.skip("not in the installed version")
    size = architecture.defaults().input_size
    state = architecture.build(num_classes=10, input_size=size, device="meta").state_dict()
    assert recognition.sizes(architecture, state) == (10, size[0])
    try:
        found, how = recognition.recognise(state, where="t.pt")
    except ModelError as error:  # one of several that fit
        how = str(error)
        named = name in how
    else:
        named = name in (str(found), *how.replace(",", " ").split())
    assert named, how
