"""`dreamkd distill`: a student trained without the teacher's data.

Three recipes: `offline` trains on shards that exist; `adaptive` synthesises as it goes, each fresh
batch against the student of its time (Adaptive DeepInversion, seed section 2.3); `generator` does
so with images of a generator that learns from batch to batch (Fang et al. 2022).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dreamkd import batchnorm, models, samples, softlabels, timetable
from dreamkd.budget import fit
from dreamkd.config import DistillConfig
from dreamkd.course import steps_per_batch
from dreamkd.engine import Runtime, enough_memory, require_memory, time_limit
from dreamkd.errors import Stopped
from dreamkd.events import Finished, Note, OnEvent, ignore
from dreamkd.examples import Examples, Labelled, is_data_free, read_labelled
from dreamkd.files import require_room
from dreamkd.identity import requested_settings
from dreamkd.images import IMAGES
from dreamkd.job import Job
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.partners import load_partner, starting_student
from dreamkd.preparation import coarsest, keep, prepare, settled, try_out
from dreamkd.recipes import RECIPES, on_noise
from dreamkd.runs import Run, default_folder, open_run
from dreamkd.softlabels import Recorder, Stored

#: What makes the bank smaller.
_FEWER = "lower --rounds, --first-batches or --image-batch-size"

#: Inputs up to this many pixels get the noise baseline unasked: there it costs little.
_CHEAP = 64


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
    curve: list[dict[str, float]]  # the student while it learned: step, images, top1, seconds

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def distill(
    config: DistillConfig,
    *,
    teacher: Classifier | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Distillation:
    """Train `student` from `teacher` into a run folder; resume it if it is there.

    Args: teacher: the network, else what `config.teacher` names; with one it only names the run.

    Raises:
        ConfigError: an option does not fit the model, or the time is too short.
        ModelError: a model cannot be loaded or built.
        NoBatchNormError: images must be synthesised and the teacher holds no statistics.
        DataError: the shards or the evaluation data do not fit.
        RunError: the folder holds a different run, is locked or cannot be written.
        DivergedError: a term became NaN or infinite.
        Stopped: `should_stop` said so; the same call goes on.
    """
    began = time.perf_counter()
    should_stop = time_limit(should_stop, minutes=config.max_minutes)
    teacher = teacher or models.load(config.teacher, **config.load_arguments())
    on_event(Note(f"teacher: {teacher.card.source}"))
    student = starting_student(config, teacher, on_event=on_event)
    # But for what is measured: the same whatever the machine.
    decided = settled(config, teacher, student=student)
    prior = None
    if config.bn_prior is not None:
        prior = load_partner(
            config.bn_prior, teacher, option="--bn-prior", trust_pickle=config.trust_pickle
        )
        on_event(Note(f"statistics: {prior.card.source}"))
    if decided.recipe != "offline":
        source = prior or teacher
        batchnorm.require_statistics(source.module, name=source.card.architecture)
    # Whatever can be refused is refused before anything is created.
    Runtime.settle(config)
    try_out(teacher, factor=coarsest(decided))
    try_out(student, training=True)
    if decided.recipe != "offline" and decided.competition:
        try_out(student, factor=coarsest(decided))  # as a rival it sees every stage
    labelled = read_labelled(config.eval_data, teacher, on_event=on_event)
    # Shards are used as they are.
    data = read_labelled(config.data, teacher, crop_pct=1.0, on_event=on_event)
    inputs: dict[str, Any] = {
        "data_pixels_sha256": data and _pixels_sha256(data.examples),
        "bn_prior_sha256": prior and prior.sha256(),
    }
    if config.labels is not None:
        wanted = {name: getattr(decided, name) for name in softlabels.VIEWS}
        wanted |= {**inputs, "teacher_sha256": teacher.sha256()}
        wanted |= {f"teacher_{name}": getattr(teacher.card, name) for name in softlabels.CARD}
        inputs["labels_kept"] = softlabels.require_same(Path(config.labels), wanted)
    inputs["student_sha256"] = student.sha256()
    inputs["student_data_free"] = student.card.data_free
    requested = requested_settings(config)
    folder = Path(config.out or default_folder("distill", config.teacher, requested))
    with open_run(folder) as run:
        on_event = run.listener(on_event)

        def check(config: DistillConfig) -> None:
            needed = _room(config, student, run)
            if not config.data:
                require_memory(_images(config), teacher.card.input_size, advice=_FEWER)
            on_event(Note(f"run: {folder}; {require_room(folder, needed)}"))

        given, planning = config, bool(config.budget_minutes) and run.resolved is None
        config, runtime = prepare(
            run,
            given,
            teacher=teacher,
            prior=prior,
            student=student,
            image_steps=_image_steps,
            budget=60 * config.budget_minutes / _graphs(config) if config.budget_minutes else None,
            inputs=inputs,
            check=None if planning else check,
        )
        common: dict[str, Any] = {
            "run": run,
            "runtime": runtime,
            "teacher": teacher,
            "on_event": on_event,
            "should_stop": should_stop,
        }
        again = student.copy() if _wants_baseline(given, teacher) else None
        labels = Stored(Path(config.labels), device=runtime.device) if config.labels else None
        with (
            enough_memory("lower --batch-size or --image-chunk, in another --out"),
            Job(
                name="student",
                config=config,
                student=student,
                prior=prior,
                given=data and data.examples,
                measured=labelled,
                recorder=Recorder(folder) if config.store_labels else None,
                stored=labels,
                **common,
            ) as job,
        ):
            if planning:
                config = fit(job, given=given, began=began)
                check(config)
                job.resize(config)
            keep(run, given, config, teacher=teacher, inputs=inputs, on_event=on_event)
            on_event(Note(f"{runtime.describe()}; compile {config.compile}"))
            examples = RECIPES[config.recipe](job)
            student = job.training.result(examples)
        free = data is None or is_data_free(str(config.data))
        data_free = free and student.card.data_free
        saved = _save(job, student, data_free=data_free)
        baseline = None
        if again is not None:
            with Job(name="noise", config=config, student=again, **common) as other:
                noise = on_noise(other, count=len(examples.images))
                baseline = other.training.result(noise)
        with runtime.active():
            count = len(examples.images)
            result = _accuracies(job, student, baseline, labelled, images=count) | {
                "images": count,
                "image_source": data.source if data else f"made from {config.teacher}",
                "steps": int(config.steps),
                "data_free": data_free,
                "synthesis_seconds": job.seconds,
                "student_seconds": job.training.seconds,
            }
        run.finish({**result, "student": saved.name})
        on_event(Finished("distill", job.seconds + job.training.seconds))
    return Distillation(out=str(folder), student=str(saved), **result)


def _image_steps(config: DistillConfig) -> int:
    """Images times steps of the whole job; compiling gains a tenth as much on a student step."""
    learned = int(config.steps) * int(config.batch_size) // 10
    return learned if config.data else learned + _images(config) * steps_per_batch(config)


def _graphs(config: DistillConfig) -> int:
    """What is compiled: the student's step, and images alone, with a rival, and refined."""
    return 1 if config.data else 4


def _images(config: DistillConfig) -> int:
    """Images that the whole job makes."""
    return timetable.batches(config) * int(config.image_batch_size)


def _room(config: DistillConfig, student: Classifier, run: Run) -> int:
    """Bytes that the run still writes, at most: images, labels, states, the student.

    A state is replaced by a whole new one, and the noise baseline has one of its own; a student's
    holds weights, their average, and the optimiser's moments.
    """
    size = student.card.input_size
    images = 0 if config.data else _images(config) - run.images
    carried = 0 if config.data else IMAGES[config.images].carried(size)
    views = int(config.steps) * int(config.batch_size)
    weights: int = sum(t.numel() * t.element_size() for t in student.module.state_dict().values())
    state = weights * (2 + (config.optimizer == "adamw") + (config.ema > 0))
    kept = min(config.store_labels, student.card.num_classes)
    labels = softlabels.room(kept, views) - softlabels.written(run.folder)
    return samples.room(max(0, images), size) + max(0, labels) + 2 * carried + 3 * state + weights


def _pixels_sha256(examples: Examples) -> str:
    return samples.pixels_sha256(examples.images, examples.labels.tolist())


def _wants_baseline(config: DistillConfig, teacher: Classifier) -> bool:
    if config.noise_baseline == "auto":
        cheap = max(teacher.card.input_size[1:]) <= _CHEAP
        return bool(config.eval_data) and cheap and not config.budget_minutes
    return config.noise_baseline == "on"


def _save(job: Job, student: Classifier, *, data_free: bool) -> Path:
    """Write `student.safetensors`, which loads alone."""
    card = replace(student.card, weights="distilled", pretrained=True, data_free=data_free)
    path = job.run.folder / "student.safetensors"
    teacher = job.teacher
    trained = f"dreamkd distill from {teacher.card.architecture}, sha256 {teacher.sha256()}"
    models.save(replace(student, card=card), path, extra={"trained": trained})
    return path


def _accuracies(
    job: Job,
    student: Classifier,
    baseline: Classifier | None,
    data: Labelled | None,
    *,
    images: int,
) -> dict[str, Any]:
    """Percent on the evaluation data, which trained nothing; None where there is none.

    Raises: Stopped: when asked; the same call measures.
    """
    if data is None:
        names = ("teacher_top1", "student_top1", "noise_top1", "agreement", "eval_source")
        return dict.fromkeys((*names, "best_top1", "best_step")) | {"curve": []}

    def stop_if_asked() -> None:
        if job.should_stop():
            raise Stopped("the student is trained and saved; the same command measures it")

    found = measure(student, *data.examples, teacher=job.teacher, on_batch=stop_if_asked)
    noise = measure(baseline, *data.examples, on_batch=stop_if_asked) if baseline else None
    curve = [*job.curve, job.point(found.top1, images=images)]
    best = max(curve, key=lambda point: point["top1"])
    return {
        "teacher_top1": found.teacher_top1,
        "student_top1": found.top1,
        "noise_top1": noise.top1 if noise else None,
        "agreement": found.agreement,
        "best_top1": best["top1"],
        "best_step": best["step"],
        "curve": curve,
        "eval_source": data.source,
    }
