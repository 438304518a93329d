"""What `invert` and `distill` decide before they begin, once, into the run's identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from dreamkd import batchnorm, calibration
from dreamkd.config import DistillConfig, InvertConfig, LimitConfig, OutputConfig, merge, settle
from dreamkd.copying import twin
from dreamkd.course import stages
from dreamkd.engine import Runtime, Work, enough_memory, worth_compiling
from dreamkd.errors import RunError
from dreamkd.events import Note, OnEvent
from dreamkd.identity import BY_CONTENT, as_json, device_kind, requested_settings, versions
from dreamkd.networks import Networks
from dreamkd.runs import Run
from dreamkd.trial import runs

Config = TypeVar("Config", InvertConfig, DistillConfig)


def prepare(
    run: Run,
    config: Config,
    *,
    networks: Networks,
    work: Callable[[Config], Work],
    identity: Mapping[str, Any],
    check: Callable[[Config], None] | None,
    on_event: OnEvent,
) -> tuple[Config, Runtime]:
    """The settings with every `auto` decided: those of the run if it exists, else new ones.

    Args:
        work: of the whole job, by the settled settings.
        identity: what else the outcome depends on, such as hashes of networks and data.
        check: of the settled settings, before anything is measured; may raise. None where their
            size is not known yet.

    Raises:
        RunError: the folder holds a different run.
        ConfigError: this machine cannot compute as asked.
    """
    requested = requested_settings(config)
    if run.resume(requested):
        require_same(run, identity)
        config = _resumed(run, config)
        if check is not None:
            check(config)
        return config, Runtime.settle(config)
    runtime = Runtime.settle(config)
    config = replace(settled(config, networks), **runtime.settings())
    if check is not None:
        check(config)
    with runtime.active():
        config = _measured(config, networks, runtime=runtime, on_event=on_event)
        if config.compile == "auto":
            calls = [
                call
                for network in networks
                for call in batchnorm.trace(
                    twin(network.module), torch.zeros(1, *network.card.input_size)
                )
            ]
            earns = worth_compiling(calls, work(config), device=runtime.device)
            config = replace(config, compile="on" if earns else "off")
    return config, runtime


def _resumed(run: Run, given: Config) -> Config:
    """What was decided when the run began, on a device of this machine of the same kind.

    Paths are as they are given now: what they hold has been found to be the same.

    Raises: RunError: there is none.
    """
    assert run.resolved is not None
    requested = requested_settings(given)
    decided = {
        name: value
        for name, value in run.resolved["config"].items()
        if name in requested and name not in BY_CONTENT
    }
    device = Runtime.settle(given).device
    if device_kind(device) != decided["device"]:
        raise RunError(
            f"{run.folder} was made on {decided['device']}, and this would be on {device}; choose "
            "another --out"
        )
    return merge(type(given), {**_all(given), **decided, "device": device})


def keep(
    run: Run,
    given: Config,
    decided: Config,
    *,
    identity: Mapping[str, Any],
    on_event: OnEvent,
) -> None:
    """Make the folder a run, unless it is one: what was given and what was decided, once.

    With `verbose` it is also told what was decided.

    Args: identity: as `prepare` was given it.
    Raises: RunError: the folder cannot be written.
    """
    if given.verbose:
        for name, value in _all(decided).items():
            if value != getattr(given, name):
                on_event(Note(f"{name} = {value} (decided)"))
    if run.resolved is not None:
        return
    outside = {f.name for base in (OutputConfig, LimitConfig) for f in fields(base)} | {"out"}
    run.settle(
        {
            "command": type(decided).__name__.removesuffix("Config").lower(),
            "requested": requested_settings(given),
            "config": {
                **{k: v for k, v in _all(decided).items() if k not in outside},
                "device": device_kind(decided.device),
            },
            **identity,
            "versions": versions(),
        }
    )


def require_same(run: Run, identity: Mapping[str, Any]) -> None:
    """Check that what a run depends on beside its settings is what it was.

    A run that is complete stays so whatever the versions of what made it.

    Args: identity: as `prepare` was given it.
    Raises: RunError: it is not.
    """
    for name, value in identity.items():
        run.require(name, as_json(value))
    if run.result is None:
        run.require_versions()


def settled(config: Config, networks: Networks) -> Config:
    """Every `auto` decided but the machine's and the measured, and checked as if it had been given.

    Raises:
        ConfigError: what was given does not go with what follows from the model.
    """
    if isinstance(config, DistillConfig) and config.budget_minutes is not None:
        # It becomes rounds and steps once the work is timed, by which a warm-up is judged.
        config = replace(config, budget_minutes=None, warmup="auto")
    card = networks.teacher.card
    decided = settle(config, input_size=card.input_size, std=card.std)
    if not config.stages and not (
        batchnorm.layers(networks.teacher.module)
        and all(
            runs(network, factor=factor)
            for network in networks.staged
            for factor in factors(decided)
            if factor > 1
        )
    ):
        # A transformer does not run at half its size, or is another network there.
        decided = replace(decided, stages=decided.stages[-1:])
    return merge(type(config), _all(decided))


def factors(config: Config) -> list[int]:
    """By how much images are shrunk in each of the stages that has a step; 1 if none are made."""
    return [1] if config.image_steps == "auto" else [factor for factor, _ in stages(config)]


def _measured(
    config: Config,
    networks: Networks,
    *,
    runtime: Runtime,
    on_event: OnEvent,
) -> Config:
    """What is measured on the model, decided: the weight of R_feature, a chunk, the border."""
    idle = config.idle()
    names = ("r_feature", "refine_r_feature")
    open_ = [name for name in names if getattr(config, name) == "auto" and name not in idle]
    if open_:
        weight = calibration.r_feature_weight(networks, config, seed=config.seed, on_event=on_event)
        # The scale has done its work; kept, it would contradict the weight.
        decided: dict[str, Any] = {**dict.fromkeys(open_, weight), "r_feature_scale": "auto"}
        config = replace(config, **decided)
    if config.image_chunk == "auto" and "image_chunk" not in idle:
        with enough_memory("one image does not fit; lower --input-size, or --device cpu"):
            chunk = calibration.image_chunk(
                networks, config, runtime=runtime, statistics="r_feature" not in idle
            )
        config = replace(config, image_chunk=chunk)
    if config.jitter_border == "auto" and "jitter_border" not in idle:
        matching = "r_feature" not in idle and "first_bn" not in config.unmatched()
        border = "wrap"
        if matching:
            border = calibration.jitter_border(
                networks, config, runtime=runtime, seed=config.seed, on_event=on_event
            )
        config = replace(config, jitter_border=border)
    return config


def _all(config: InvertConfig | DistillConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}
