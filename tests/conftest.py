"""Shared fixtures: small networks and settings that keep tests fast and repeatable."""

from __future__ import annotations

import gc
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import settings

from dreamkd import models
from dreamkd.config import DistillConfig, InvertConfig, merge
from dreamkd.models import Classifier

#: New draws would make what passed today fail tomorrow; the hunts below tests/reliability draw.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")

#: Files of slow tests that take longest: of workers side by side, each begins with one.
_LONGEST = ("test_documented.py", "test_crash.py", "test_distributed.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


#: One thread, float32, no compiler: the same path, and the same bits wherever the tests run.
PLAIN = {"threads": 1, "precision": "fp32", "compile": "off", "device": "cpu"}


@pytest.fixture(autouse=True)
def leave_torch_as_it_was() -> Iterator[None]:
    """No test may leave another thread count, or another global random stream, to the next."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    assert torch.get_num_threads() == threads
    torch.set_rng_state(state)


@contextmanager
def files_left_open() -> Iterator[None]:
    """Webdataset and timm leave files to the garbage collector, which warns where it finds them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        yield
        gc.collect()


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background and would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def digits() -> Classifier:
    """The bundled digits teacher, 1×16×16."""
    return models.load("digits_resnet14")


def invert_config(**given: Any) -> InvertConfig:
    """Settings of a short inversion of the digits teacher."""
    short = {"model": "digits_resnet14", "image_steps": 2, "image_batch_size": 20, "per_class": 4}
    return merge(InvertConfig, {**PLAIN, **short, **given})


def against(weight: float, **given: Any) -> dict[str, Any]:
    """Settings of images that compete with a student, which the test brings itself."""
    return {"method": "adaptive", "student": "student", "competition": weight, **given}


def distill_config(**given: Any) -> DistillConfig:
    """Settings of a short distillation of the digits teacher."""
    short = {
        "teacher": "digits_resnet14",
        "student": "cifar_resnet8",
        "image_steps": 2,
        "image_batch_size": 20,
        "first_batches": 2,
        "rounds": 2,
        "steps": 12,
        "warmup": 2,
        "batch_size": 16,
    }
    return merge(DistillConfig, {**PLAIN, **short, **given})
