"""`dreamkd invert`: a trained classifier turned into shards of images.

Batch k is a pure function of (settings, teacher, k) and shard k holds it, so that resuming is
making the batches that are missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dreamkd.bank import Bank
from dreamkd.config import InvertConfig
from dreamkd.course import full_steps, graphs
from dreamkd.distributed import Workers
from dreamkd.engine import Runtime, Work, enough_memory, ordinary
from dreamkd.errors import ConfigError
from dreamkd.events import Finished, Hint, Note, OnEvent, ignore
from dreamkd.files import require_room
from dreamkd.formats import FORMATS
from dreamkd.identity import requested_settings
from dreamkd.layout import Layout
from dreamkd.models import Card
from dreamkd.networks import BY_NAME, Own
from dreamkd.partners import Partners
from dreamkd.preparation import factors, keep, prepare, settled
from dreamkd.runfolder import default_folder, holder, join_run, open_run
from dreamkd.runs import Run
from dreamkd.sequence import SMALLER, Chain, sequential
from dreamkd.tally import Tally
from dreamkd.trial import try_out
from dreamkd.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """What `invert` made."""

    out: str
    images: int
    shards: int
    r_feature: float  # mean over batches, of the kept images; 0 without batch norm
    r_feature_chance: float  # mean over batches of what such images show by chance
    teacher_top1: float  # percent of images that the teacher classifies as asked
    verifiers: dict[str, float]  # percent, by verifier
    seconds: float  # of work by this process

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@ordinary()
def invert(
    config: InvertConfig,
    *,
    own: Own = BY_NAME,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inversion:
    """Synthesise `per_class` images of every class into a run folder; resume it if it is there.

    Args: own: networks that stay as they are; the settings only name them, and the run.

    Raises:
        ConfigError: an option does not fit the model.
        ModelError: a model cannot be loaded.
        NoBatchNormError: the method needs statistics that the model does not hold.
        RunError: the folder holds a different run, is locked or cannot be written.
        DivergedError: a term became NaN or infinite.
        Stopped: `should_stop` said so; the same call goes on.
    """
    group, own = Workers.of_environment(), own.borrowed()
    with group.joined(on_event):
        if group.leads:
            return _lead(config, group, own, on_event=on_event, should_stop=should_stop)
        return _follow(group, own, on_event=on_event, should_stop=should_stop)


@dataclass(frozen=True)
class _Assignment:
    """What the leader decided and tells: all that a worker needs to make its share."""

    config: InvertConfig  # every `auto` decided
    folder: Path
    leader: str  # as of `runfolder.holder`
    identity: dict[str, Any]  # what else the outcome depends on
    plan: list[tuple[int, int]]  # images [start, stop) of every batch
    held: list[bool]  # of every batch, whether it is there


def _lead(
    config: InvertConfig,
    group: Workers,
    own: Own,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Inversion:
    """Decide what the run is, make a share of its batches, and end it."""
    began = time.perf_counter()
    partners = Partners.load(config, own, on_event=on_event)
    networks, card = partners.networks, partners.networks.teacher.card
    layout = Layout.of(config, card)
    # Whatever can be refused is refused before anything is created.
    Runtime.settle(config)
    decided = settled(config, networks)
    _refuse_to_share(decided, group)
    for network in networks.staged:
        for factor in factors(decided):
            try_out(network, factor=factor, synthesis=True)
    identity = partners.identity()
    wanted = {"requested": requested_settings(config), **identity}
    folder = Path(config.out or default_folder("invert", config.model, wanted))
    with open_run(folder) as run:
        worker = Worker.at(
            run, group, on_event, should_stop, minutes=config.max_minutes, began=began
        )
        on_event = worker.on_event
        if config.format == "folder" and len(layout.classes) < card.num_classes:
            made = f"{len(layout.classes)} of {card.num_classes} classes are made"
            on_event(Hint(f"{made}: ImageFolder numbers those from 0, unlike the records"))

        def check(config: InvertConfig) -> None:
            needed = layout.room(config, card, made=run.images)
            on_event(Note(f"run: {folder}; {require_room(folder, needed)}"))

        given = config
        config, runtime = prepare(
            run,
            given,
            networks=networks,
            work=lambda c: Work(layout.count * full_steps(c) / group.world_size, graphs(c)),
            identity=identity,
            check=check,
            on_event=on_event,
        )
        keep(run, given, config, identity=identity, on_event=on_event)
        on_event(Note(f"{runtime.describe()}; compile {config.compile}"))
        if group.world_size > 1:
            on_event(Note(f"{group.world_size} workers; progress is that of the first one's share"))
        with _bank(run, config, card, on_event=on_event) as bank:
            plan = layout.batches(config, made=bank.lines)
            if config.method != "deepdream" and any(stop - start == 1 for start, stop in plan):
                on_event(Hint("a batch is of a single image, whose statistics are matched alone"))
            if run.images > layout.count:
                on_event(Hint(f"it holds {run.images} images, more than asked for, and keeps them"))
            assignment = _Assignment(
                config, folder, holder(folder), identity, plan, bank.held(range(len(plan)))
            )
            # What a sequential run carries past its last batch is part of its end too.
            finished = run.result is not None and all(assignment.held)
            if finished:
                group.broadcast()
                on_event(Note("it is finished: nothing is left to make"))
            else:
                run.begin()
                bank.tidy()
                group.broadcast(assignment)
                with group.together():
                    _make(assignment, worker, bank, partners)
            bank.complete(len(plan))
            result = _result(bank, folder, time.perf_counter() - began)
        run.finish({k: v for k, v in result.to_json().items() if k not in ("out", "seconds")})
        on_event(Finished("invert", result.seconds))
    return group.broadcast(result)


def _follow(
    group: Workers,
    own: Own,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Inversion:
    """Make a share of the batches that the leader tells of, if there are any to make."""
    began = time.perf_counter()
    assignment: _Assignment | None = group.broadcast()
    if assignment is not None:
        config = assignment.config
        with group.together(), join_run(assignment.folder, leader=assignment.leader) as run:
            partners = Partners.load(config, own, on_event=ignore)
            group.require_same(partners.identity(), assignment.identity)
            worker = Worker.at(
                run, group, on_event, should_stop, minutes=config.max_minutes, began=began
            )
            card = partners.networks.teacher.card
            with _bank(run, config, card, page=False, on_event=worker.on_event) as bank:
                _make(assignment, worker, bank, partners)
    return group.broadcast()


def _make(assignment: _Assignment, worker: Worker, bank: Bank, partners: Partners) -> None:
    """Make this worker's share of the batches that are missing.

    Raises: Stopped.
    """
    group, on_event = worker.group, worker.on_event
    config = replace(assignment.config, device=group.device(assignment.config.device))
    runtime, layout = Runtime.settle(config), Layout.of(config, partners.networks.teacher.card)
    with (
        enough_memory(SMALLER),
        partners.verifiers.on(runtime.device),
        partners.synthesiser(config, runtime=runtime, on_event=on_event) as synthesiser,
        Chain(worker.run, bank, seed=config.seed, on_event=on_event) as chain,
    ):
        left = chain.begin(synthesiser, assignment.held)
        missing, made = group.share(left), (len(assignment.plan) - len(left)) // group.world_size

        def should_stop() -> bool:
            return group.hears_stop(worker.should_stop())

        tally = Tally(on_event, should_stop, batches=made + len(missing), made=made)
        for k in missing:
            start, stop = assignment.plan[k]
            batch = chain.make(k, layout.labels(start, stop), on_step=tally.on_step)
            batch = replace(batch, verifiers=partners.verifiers.predictions(batch.images))
            chain.keep(k, batch, start=start)
            tally.on_batch(batch)


def _bank(
    run: Run, config: InvertConfig, card: Card, *, page: bool = True, on_event: OnEvent
) -> Bank:
    """Where the batches go, in the format that was asked for."""
    names = card.class_names or list(map(str, range(card.num_classes)))
    files = FORMATS[config.format](run.folder, names)
    return Bank(run, files=files, page=page, on_event=on_event)


def _refuse_to_share(config: InvertConfig, group: Workers) -> None:
    """Raises: ConfigError: several processes cannot make these batches."""
    if group.world_size == 1:
        return
    if sequential(config):
        raise ConfigError(
            "every batch depends on those before it (--images generator, --bn-momentum): "
            f"{group.world_size} workers cannot share them, so run one process"
        )
    group.require_own_devices(config.device)


def _result(bank: Bank, folder: Path, seconds: float) -> Inversion:
    lines = bank.lines
    images: int = sum(line["count"] for line in lines)

    def mean(values: Sequence[float]) -> float:
        """Over images: every batch counts by its size."""
        weighed = [v * line["count"] for v, line in zip(values, lines, strict=True)]
        return math.fsum(weighed) / images

    return Inversion(
        out=str(folder),
        images=images,
        shards=len(lines),
        r_feature=mean([line["r_feature"] for line in lines]),
        r_feature_chance=mean([line["r_feature_chance"] for line in lines]),
        teacher_top1=mean([line["teacher_top1"] for line in lines]),
        verifiers={
            name: mean([line["verifiers"][name] for line in lines])
            for name in lines[0]["verifiers"]
        },
        seconds=seconds,
    )
