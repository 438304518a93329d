"""What `invert` and `distill` decide before they begin, once, into the run's identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar, cast

import torch

from dreamkd import batchnorm
from dreamkd.config import DistillConfig, InvertConfig, settle
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
        decided = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in run.resolved["config"].items()
            if name in requested
        }
        config = cast("Config", replace(config, **decided))
        return config, Runtime.settle(config)
    runtime = Runtime.settle(config)
    config = cast("Config", settle(config, input_size=teacher.card.input_size))
    config = cast("Config", replace(config, **runtime.settings()))
    if config.compile == "auto":
        calls = batchnorm.trace(teacher.module, torch.zeros(1, *teacher.card.input_size))
        earns = worth_compiling(calls, image_steps=image_steps(config))
        config = cast("Config", replace(config, compile="on" if earns else "off"))
    kept = {f.name: getattr(config, f.name) for f in fields(config)}
    kept = {k: v for k, v in kept.items() if k not in ("json", "quiet", "verbose", "out")}
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


def _facts(teacher: Classifier) -> dict[str, Any]:
    """The teacher's card without what differs from machine to machine."""
    facts = asdict(teacher.card)
    del facts["source"]
    return facts
