"""`dreamkd distill`: a student trained without the teacher's data.

Three recipes: `offline` trains on shards that exist; `adaptive` synthesises as it goes, each fresh
batch against the student of its time (Yin et al. 2020, section 3.3); `generator` does
so with images of a generator that learns from batch to batch (Fang et al. 2022).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dreamkd import batchnorm, footprint, timetable
from dreamkd.budget import fit
from dreamkd.config import DistillConfig
from dreamkd.distributed import Workers
from dreamkd.engine import Runtime, enough_memory, ordinary
from dreamkd.errors import ConfigError
from dreamkd.events import Finished, Note, OnEvent, ignore
from dreamkd.examples import Examples
from dreamkd.identity import requested_settings
from dreamkd.job import Job
from dreamkd.materials import Materials
from dreamkd.models import Classifier
from dreamkd.networks import BY_NAME, Own
from dreamkd.outcome import accuracies, save, wants_baseline
from dreamkd.preparation import factors, keep, prepare, settled
from dreamkd.randomness import alone
from dreamkd.recipes import RECIPES, on_noise
from dreamkd.runfolder import default_folder, holder, join_run, open_run
from dreamkd.softlabels import Recorder, Stored
from dreamkd.timing import measure_pace
from dreamkd.trial import try_out
from dreamkd.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What `distill` made; accuracies in percent on `eval_source`, None where not measured."""

    out: str
    student: str  # the checkpoint
    teacher_top1: float | None
    student_top1: float | None
    noise_top1: float | None  # the same student, trained on noise for the same steps
    agreement: float | None  # of student and teacher
    best_top1: float | None  # the student's best while it learned: chosen by these data, no result
    best_step: int | None
    eval_source: str | None
    images: int
    image_source: str
    steps: int
    data_free: bool
    synthesis_seconds: float
    student_seconds: float  # without the baseline's
    seconds: float  # of both
    curve: list[dict[str, float]]  # the student while it learned: step, images, top1, seconds

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@ordinary()
@alone()
def distill(
    config: DistillConfig,
    *,
    own: Own = BY_NAME,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Distillation:
    """Train `student` from `teacher` into a run folder; resume it if it is there.

    Args: own: networks that stay as they are, the student too, of which a copy learns; the settings
        only name them, and the run.

    Raises:
        ConfigError: an option does not fit the model, or the time is too short.
        ModelError: a model cannot be loaded or built.
        NoBatchNormError: images must be synthesised and the teacher holds no statistics.
        DataError: the shards or the evaluation data do not fit.
        RunError: another one runs in this process; or the folder is not writable, or not its own.
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
    """What the leader decided and tells: all that a worker needs to take its part."""

    config: DistillConfig  # every `auto` decided, but for the steps if there is a plan to make
    folder: Path
    leader: str  # as of `runfolder.holder`
    identity: dict[str, Any]  # what else the outcome depends on
    planning: bool


def _lead(
    config: DistillConfig,
    group: Workers,
    own: Own,
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Distillation:
    """Decide what the run is, take a part in it, and end it."""
    began = time.perf_counter()
    materials = Materials.load(config, own, on_event=on_event)
    networks, student = materials.networks, materials.student
    # But for what is measured: the same whatever the machine.
    decided = settled(config, networks)
    if timetable.synthesises(decided):
        matched = networks.matched
        batchnorm.require_statistics(matched.module, name=matched.card.architecture)
    # Whatever can be refused is refused before anything is created.
    Runtime.settle(config)
    _refuse_to_share(decided, group)
    for network in networks.staged:
        for factor in factors(decided):
            try_out(network, factor=factor, synthesis=timetable.synthesises(decided))
    try_out(student, training=True)
    requested = requested_settings(config)
    if config.out:
        folder = Path(config.out)
    else:
        wanted = {"requested": requested, **networks.identity(student)}
        folder = default_folder("distill", config.teacher, wanted)
    with open_run(folder) as run:
        run.resume(requested)  # a different run is refused before images are read
        worker = Worker.at(
            run, group, on_event, should_stop, minutes=config.max_minutes, began=began
        )
        on_event = worker.on_event
        materials = materials.with_images(config, workers=group, on_event=on_event)
        identity = materials.identity(decided) | {"workers": group.world_size}

        def check(config: DistillConfig) -> None:
            on_event(Note(f"run: {folder}; {footprint.require(config, student, run)}"))

        given, planning = config, bool(config.budget_minutes) and run.resolved is None
        config, runtime = prepare(
            run,
            given,
            networks=networks,
            work=partial(footprint.work, workers=group.world_size, minutes=given.budget_minutes),
            identity=identity,
            check=None if planning else check,
            on_event=on_event,
        )
        baseline = "on" if wants_baseline(given, networks.teacher) else "off"
        config = replace(config, noise_baseline=baseline)
        assignment = _Assignment(config, folder, holder(folder), identity, planning)

        def plan(job: Job) -> DistillConfig:
            config = assignment.config
            if planning:
                config = fit(job, given=given, began=began)
                check(config)
            group.barrier()  # all of them are there before the run holds how many
            keep(run, given, config, identity=identity, on_event=on_event)
            on_event(Note(f"{runtime.describe()}; compile {config.compile}"))
            if run.result is not None:
                on_event(Note("it is finished: nothing is left to learn"))
            if group.world_size > 1:
                on_event(Note(f"{group.world_size} workers, each with its part of every batch"))
            return group.broadcast(config)

        group.broadcast(assignment)
        with group.together():
            job, examples, student = _train(assignment, worker, materials, plan)
            data_free = materials.is_data_free(config)
            saved = save(job, student, data_free=data_free)
            count = len(examples.images)
            noise = _train_on_noise(assignment, job, materials, examples)
            with job.runtime.active():
                result = accuracies(job, student, noise, images=count) | {
                    "images": count,
                    "image_source": materials.source(config),
                    "steps": int(job.config.steps),
                    "data_free": data_free,
                    "synthesis_seconds": job.seconds,
                    "student_seconds": job.training.seconds,
                    "seconds": job.seconds + job.training.seconds,
                }
        run.finish({**result, "student": saved.name})
        on_event(Finished("distill", time.perf_counter() - began))
    return group.broadcast(Distillation(out=str(folder), student=str(saved), **result))


def _follow(
    group: Workers, own: Own, *, on_event: OnEvent, should_stop: Callable[[], bool]
) -> Distillation:
    """Take the part in the leader's run that it tells of."""
    began = time.perf_counter()
    assignment: _Assignment = group.broadcast()
    config = assignment.config
    with group.together(), join_run(assignment.folder, leader=assignment.leader) as run:
        materials = Materials.load(config, own).with_images(config, workers=group, measure=False)
        group.require_same(materials.identity(config), assignment.identity)

        def plan(job: Job) -> DistillConfig:
            if assignment.planning:
                measure_pace(job)
            group.barrier()
            return group.broadcast()

        worker = Worker.at(
            run, group, on_event, should_stop, minutes=config.max_minutes, began=began
        )
        job, examples, _ = _train(assignment, worker, materials, plan)
        _train_on_noise(assignment, job, materials, examples)
    return group.broadcast()


def _train(
    assignment: _Assignment,
    worker: Worker,
    materials: Materials,
    plan: Callable[[Job], DistillConfig],
) -> tuple[Job, Examples, Classifier]:
    """Train the student, or take a part in it.

    Args: plan: of the open job: its settings, with its steps decided.
    Returns: the job, ended; what the student learned from; the student.
    """
    run = worker.run
    config = replace(assignment.config, device=worker.group.device(assignment.config.device))
    runtime = Runtime.settle(config)
    with (
        enough_memory("lower --batch-size or --image-chunk, in another --out"),
        Job(
            name="student",
            run=run,
            config=config,
            runtime=runtime,
            teacher=materials.teacher,
            student=materials.student.copy(),
            on_event=worker.on_event,
            should_stop=worker.should_stop,
            prior=materials.networks.prior,
            given=materials.given and materials.given.examples,
            measured=materials.measured,
            recorder=Recorder(run.folder) if config.store_labels else None,
            stored=Stored(Path(config.labels), device=runtime.device) if config.labels else None,
            workers=worker.group,
        ) as job,
    ):
        job.resize(replace(plan(job), device=config.device))
        examples = RECIPES[config.recipe](job)
        return job, examples, job.result(examples)


def _train_on_noise(
    assignment: _Assignment, before: Job, materials: Materials, examples: Examples
) -> Classifier | None:
    """The same student trained as long on noise in place of `examples`, if that is wanted."""
    if assignment.config.noise_baseline == "off":
        return None
    with Job(
        name="noise",
        run=before.run,
        config=replace(before.config, noise_baseline="off"),  # after it nobody learns
        runtime=before.runtime,
        teacher=before.teacher,
        student=materials.student.copy(),
        on_event=before.on_event,
        should_stop=before.should_stop,
        workers=before.workers,
    ) as job:
        noise = on_noise(job, examples)
        return job.result(noise)


def _refuse_to_share(config: DistillConfig, group: Workers) -> None:
    """Raises: ConfigError: several processes cannot train this student."""
    if group.world_size == 1:
        return
    if timetable.synthesises(config):
        raise ConfigError(
            f"{group.world_size} workers train on images that exist, --data RUN: make them first "
            "with dreamkd invert, which they share too, or run one process"
        )
    group.require_own_devices(config.device)
    part, rest = divmod(int(config.batch_size), group.world_size)
    if rest or part < 2:
        raise ConfigError(
            f"--batch-size {config.batch_size}: is no multiple of {group.world_size} workers, each "
            "of which takes an equal part, of two images at least"
        )
