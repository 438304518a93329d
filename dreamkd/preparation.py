"""What `invert` and `distill` decide before they begin, once, into the run's identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

import torch

from dreamkd import batchnorm
from dreamkd.config import DistillConfig, InvertConfig, OutputConfig, merge, settle
from dreamkd.engine import Runtime, worth_compiling
from dreamkd.models import Classifier
from dreamkd.runs import Run, requested_settings, versions

Config = TypeVar("Config", InvertConfig, DistillConfig)


def prepare(
    run: Run,
    config: Config,
    *,
    teacher: Classifier,
    image_steps: Callable[[Config], int],
) -> tuple[Config, Runtime]:
    """The settings with every `auto` decided: taken from the run if it exists, else made and kept.

    Args:
        image_steps: images times steps of the whole job, by the settled settings.

    Raises:
        RunError: the folder holds a different run.
        ConfigError: this machine cannot compute as asked.
    """
    identity = {"teacher_sha256": teacher.sha256(), "versions": versions()}
    requested = requested_settings(config)
    if run.resume(requested):
        for name, value in identity.items():
            run.require(name, value)
        assert run.resolved is not None
        decided = {k: v for k, v in run.resolved["config"].items() if k in requested}
        config = merge(type(config), {**_all(config), **decided})
        return config, Runtime.settle(config)
    runtime = Runtime.settle(config)
    config = settle(config, input_size=teacher.card.input_size)
    config = replace(config, **runtime.settings())
    if config.compile == "auto":
        calls = batchnorm.trace(teacher.module, torch.zeros(1, *teacher.card.input_size))
        earns = worth_compiling(calls, image_steps=image_steps(config))
        config = replace(config, compile="on" if earns else "off")
    printed = {f.name for f in fields(OutputConfig)} | {"out"}
    kept = {k: v for k, v in _all(config).items() if k not in printed}
    run.settle(
        {
            "command": type(config).__name__.removesuffix("Config").lower(),
            "requested": requested,
            "config": kept,
            "teacher": _facts(teacher),
            **identity,
        }
    )
    return config, runtime


def _all(config: InvertConfig | DistillConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _facts(teacher: Classifier) -> dict[str, Any]:
    """The teacher's card without what differs from machine to machine."""
    facts = asdict(teacher.card)
    del facts["source"]
    return facts
