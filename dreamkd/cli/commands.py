"""The four commands: settings in, one call of a workflow, a result out.

Workflows, and with them torch, are imported inside the functions, so that help and refusals of
wrong options are instant.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from dreamkd.cli import tables
from dreamkd.cli.caches import settle_compiler_cache
from dreamkd.cli.display import display
from dreamkd.cli.options import ordered
from dreamkd.cli.streams import document, write_result
from dreamkd.config import DistillConfig, EvalConfig, InspectConfig, InvertConfig
from dreamkd.distributed import Workers
from dreamkd.errors import ConfigError, DreamkdError
from dreamkd.events import Note, OnEvent

ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Answer:
    """What a command found, for programs and for people, and the error it amounts to."""

    document: dict[str, Any]
    tables: tuple[RenderableType, ...]
    error: DreamkdError | None = None


def run(command: str, config: Any, *, should_stop: ShouldStop) -> None:
    """Run a command and print its result on stdout, everything else on stderr.

    Raises: DreamkdError: what the workflow raises, or what its result amounts to.
    """
    workers = Workers.of_environment()
    if workers.world_size > 1 and command not in _OPTIMISING:
        raise ConfigError(f"{command} is the work of one process: run it without torchrun")
    with _silent(config.quiet), display(quiet=config.quiet, live=workers.leads) as on_event:
        settle_compiler_cache(on_event, needed=command in _OPTIMISING)
        if config.verbose and workers.leads:
            for field in ordered(type(config)):
                on_event(Note(f"{field.name} = {getattr(config, field.name)}"))
        answer = RUN[command](config, on_event=on_event, should_stop=should_stop)
    if workers.leads:
        write_result(document(answer.document) if config.json else tables.text(*answer.tables))
    if answer.error is not None:
        raise answer.error


def inspect(config: InspectConfig, *, on_event: OnEvent, should_stop: ShouldStop) -> Answer:
    """List the batch-norm layers of a model and say whether it can be inverted."""
    del should_stop  # seconds of work and nothing to save
    from dreamkd.assessment import inspect as workflow

    found = workflow(config, on_event=on_event)
    return Answer(found.to_json(), tables.inspection(found), found.error)


def evaluate(config: EvalConfig, *, on_event: OnEvent, should_stop: ShouldStop) -> Answer:
    """Measure a model on labelled images."""
    del should_stop  # nothing to save
    from dreamkd.assessment import evaluate as workflow

    found, card, runtime = workflow(config, on_event=on_event)
    result = {"model": dataclasses.asdict(card), **found.to_json(), **runtime.settings()}
    if not config.per_class:
        del result["per_class"]
    return Answer(result, tables.evaluation(found, per_class=config.per_class))


def invert(config: InvertConfig, *, on_event: OnEvent, should_stop: ShouldStop) -> Answer:
    """Turn a trained classifier into images."""
    from dreamkd.inversion import invert as workflow

    result = workflow(config, on_event=on_event, should_stop=should_stop).to_json()
    return Answer(result, (tables.facts(result),))


def distill(config: DistillConfig, *, on_event: OnEvent, should_stop: ShouldStop) -> Answer:
    """Train a student without data."""
    from dreamkd.distillation import distill as workflow

    found = workflow(config, on_event=on_event, should_stop=should_stop)
    return Answer(found.to_json(), tables.distillation(found, config))


@contextmanager
def _silent(quiet: bool) -> Iterator[None]:
    """With --quiet, libraries say nothing but errors; without, nothing of a missing GPU."""
    before = logging.root.manager.disable
    builder = logging.getLogger("torch.utils.cpp_extension")
    builder.addFilter(_is_news)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)
            builder.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether torch says more than that a machine with CUDA's tools has no GPU for them."""
    return not record.getMessage().startswith("No CUDA runtime is found")


#: Commands that optimise: torchrun's processes share their work, and torch wants its compiler.
_OPTIMISING = ("invert", "distill")

RUN: dict[str, Callable[..., Answer]] = {
    "inspect": inspect,
    "invert": invert,
    "distill": distill,
    "eval": evaluate,
}
