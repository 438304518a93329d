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

from dreamkd import models
from dreamkd.bank import Bank
from dreamkd.config import InvertConfig
from dreamkd.course import full_steps, graphs
from dreamkd.distributed import Workers
from dreamkd.engine import Runtime, Work, enough_memory, ordinary
from dreamkd.errors import ConfigError, RunError
from dreamkd.events import Finished, Hint, Note, OnEvent, ignore
from dreamkd.files import require_room
from dreamkd.formats import FORMATS
from dreamkd.identity import requested_settings
from dreamkd.layout import Layout
from dreamkd.models import Classifier
from dreamkd.pace import Pace
from dreamkd.partners import Partners
from dreamkd.preparation import factors, keep, prepare, require_same, settled
from dreamkd.runs import Run, default_folder, open_run
from dreamkd.sequence import SMALLER, Chain, sequential
from dreamkd.trial import try_out


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
    teacher: Classifier | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Inversion:
    """Synthesise `per_class` images of every class into a run folder; resume it if it is there.

    Args: teacher: the network, which stays as it is; with one `config.model` only names the run.

    Raises:
        ConfigError: an option does not fit the model.
        ModelError: a model cannot be loaded.
        NoBatchNormError: the method needs statistics that the model does not hold.
        RunError: the folder holds a different run, is locked or cannot be written.
        DivergedError: a term became NaN or infinite.
        Stopped: `should_stop` said so; the same call goes on.
    """
    workers, teacher = Workers.of_environment(), teacher and teacher.borrowed()
    with workers.joined(on_event):
        if workers.leads:
            return _lead(config, workers, teacher, on_event=on_event, should_stop=should_stop)
        return _follow(workers, teacher, on_event=on_event, should_stop=should_stop)


@dataclass(frozen=True)
class _Assignment:
    """What the leader decided and tells: all that a worker needs to make its share."""

    config: InvertConfig  # every `auto` decided
    folder: Path
    plan: list[tuple[int, int]]  # images [start, stop) of every batch
    held: list[bool]  # of every batch, whether it is there


def _lead(
    config: InvertConfig,
    workers: Workers,
    teacher: Classifier | None,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Inversion:
    """Decide what the run is, make a share of its batches, and end it."""
    began = time.perf_counter()
    teacher = teacher or models.load(config.model, **config.load_arguments(), on_event=on_event)
    on_event(Note(f"teacher: {teacher.card.source}"))
    partners = Partners.load(config, teacher, on_event=on_event)
    layout = Layout.of(config, teacher.card)
    # Whatever can be refused is refused before anything is created.
    Runtime.settle(config)
    decided = settled(config, teacher, student=partners.student)
    _refuse_to_share(decided, workers)
    for network in filter(None, (teacher, partners.student)):
        for factor in factors(decided):
            try_out(network, factor=factor, synthesis=True)
    requested, weights = requested_settings(config), teacher.sha256()
    folder = Path(config.out or default_folder("invert", config.model, requested, weights))
    with open_run(folder) as run:
        on_event = run.listener(on_event)
        if config.format == "folder" and len(layout.classes) < teacher.card.num_classes:
            made = f"{len(layout.classes)} of {teacher.card.num_classes} classes are made"
            on_event(Hint(f"{made}: ImageFolder numbers those from 0, unlike the records"))
        should_stop = run.limited(should_stop, minutes=config.max_minutes, began=began)

        def check(config: InvertConfig) -> None:
            needed = layout.room(config, teacher.card, made=run.images)
            on_event(Note(f"run: {folder}; {require_room(folder, needed)}"))

        given, inputs = config, partners.identity()
        config, runtime = prepare(
            run,
            given,
            teacher=teacher,
            prior=partners.prior,
            student=partners.student,
            work=lambda c: Work(layout.count * full_steps(c) / workers.world, graphs(c)),
            inputs=inputs,
            check=check,
            on_event=on_event,
        )
        keep(run, given, config, teacher=teacher, inputs=inputs, on_event=on_event)
        on_event(Note(f"{runtime.describe()}; compile {config.compile}"))
        if workers.world > 1:
            on_event(Note(f"{workers.world} workers; progress is that of the first one's share"))
        with _bank(run, config, teacher, on_event=on_event) as bank:
            plan = layout.batches(config, made=bank.lines)
            if config.method != "deepdream" and any(stop - start == 1 for start, stop in plan):
                on_event(Hint("a batch is of a single image, whose statistics are matched alone"))
            if run.images > layout.count:
                on_event(Hint(f"it holds {run.images} images, more than asked for, and keeps them"))
            assignment = _Assignment(config, folder, plan, bank.held(range(len(plan))))
            # What a sequential run carries past its last batch is part of its end too.
            finished = run.result is not None and all(assignment.held)
            if workers.told(finished):
                on_event(Note("it is finished: nothing is left to make"))
            else:
                run.begin()
                workers.told(assignment)
                with workers.together():
                    _make(assignment, run, bank, teacher, partners, workers, on_event, should_stop)
            bank.complete()
            result = _result(bank, folder, time.perf_counter() - began)
        run.finish({k: v for k, v in result.to_json().items() if k not in ("out", "seconds")})
        on_event(Finished("invert", result.seconds))
    return workers.told(result)


def _follow(
    workers: Workers,
    teacher: Classifier | None,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Inversion:
    """Make a share of the batches that the leader tells of."""
    began = time.perf_counter()
    finished: bool = workers.told()
    if not finished:
        assignment: _Assignment = workers.told()
        config = assignment.config
        with workers.together():
            run = Run(assignment.folder)
            if run.resolved is None:
                raise RunError(
                    f"{assignment.folder} holds no run here; all workers need the same folder"
                )
            teacher = teacher or models.load(config.model, **config.load_arguments())
            partners = Partners.load(config, teacher, on_event=ignore)
            require_same(run, teacher, partners.identity())
            on_event = workers.hints_only(run.listener(on_event))
            should_stop = run.limited(should_stop, minutes=config.max_minutes, began=began)
            with _bank(run, config, teacher, page=False, on_event=on_event) as bank:
                _make(assignment, run, bank, teacher, partners, workers, on_event, should_stop)
    return workers.told()


def _make(
    assignment: _Assignment,
    run: Run,
    bank: Bank,
    teacher: Classifier,
    partners: Partners,
    workers: Workers,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> None:
    """Make this worker's share of the batches that are missing.

    Raises: Stopped.
    """
    config = replace(assignment.config, device=workers.device(assignment.config.device))
    runtime, layout = Runtime.settle(config), Layout.of(config, teacher.card)
    with (
        enough_memory(SMALLER),
        partners.verifiers.on(runtime.device),
        partners.synthesiser(teacher, config, runtime=runtime, on_event=on_event) as synthesiser,
        Chain(run, bank, seed=config.seed, on_event=on_event) as chain,
    ):
        left = chain.begin(synthesiser, assignment.held)
        missing, made = workers.share(left), (len(assignment.plan) - len(left)) // workers.world
        pace = Pace(on_event, should_stop, batches=made + len(missing), made=made)
        for k in missing:
            start, stop = assignment.plan[k]
            batch = chain.make(k, layout.labels(start, stop), on_step=pace.on_step)
            batch = replace(batch, verifiers=partners.verifiers.predictions(batch.images))
            chain.keep(k, batch, start=start)
            pace.on_batch(batch)


def _bank(
    run: Run, config: InvertConfig, teacher: Classifier, *, page: bool = True, on_event: OnEvent
) -> Bank:
    """Where the batches go, in the format that was asked for."""
    names = teacher.card.class_names or list(map(str, range(teacher.card.num_classes)))
    files = FORMATS[config.format](run.folder, names)
    return Bank(run, files=files, page=page, on_event=on_event)


def _refuse_to_share(config: InvertConfig, workers: Workers) -> None:
    """Raises: ConfigError: several processes cannot make these batches."""
    if workers.world == 1:
        return
    if sequential(config):
        raise ConfigError(
            "every batch depends on those before it (--images generator, --bn-momentum): "
            f"{workers.world} workers cannot share them, so run one process"
        )
    workers.require_own_devices(config.device)


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
