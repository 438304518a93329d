"""`dreamkd distill`: a student trained without the teacher's data.

Two recipes so far: `offline` trains on shards that exist, `adaptive` synthesises as it goes, each
fresh batch against the student of its time (Adaptive DeepInversion, seed section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dreamkd import batchnorm, models
from dreamkd.config import DistillConfig
from dreamkd.data import ImageSet, Preprocessing, open_images, stack
from dreamkd.engine import Runtime
from dreamkd.errors import DataError
from dreamkd.events import Finished, Hint, Note, OnEvent, ignore
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.preparation import prepare
from dreamkd.recipes import RECIPES, Job, batches, on_noise
from dreamkd.runs import Run, default_folder, open_run, requested_settings

#: Inputs up to this many pixels get the noise baseline unasked: there it costs little.
_SMALL = 64


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What `distill` made; accuracies in percent on `eval_source`, None where not measured."""

    out: str
    student: str  # the checkpoint
    teacher_top1: float | None
    student_top1: float | None
    noise_top1: float | None  # the same student, trained on noise for the same steps
    agreement: float | None  # of student and teacher
    eval_source: str | None
    images: int
    image_source: str
    steps: int
    data_free: bool
    synthesis_seconds: float
    student_seconds: float  # without the baseline's

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def distill(
    config: DistillConfig,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Distillation:
    """Train `student` from `teacher` into a run folder; resume it if it is there.

    Raises:
        ModelError: a model cannot be loaded or built.
        NoBatchNormError: images must be synthesised and the teacher holds no statistics.
        DataError: the shards or the evaluation data do not fit.
        RunError: the folder holds a different run, is locked or cannot be written.
        DivergedError: a term became NaN or infinite.
        Stopped: `should_stop` said so; the same call goes on.
    """
    teacher = models.load(config.teacher, **config.load_arguments())
    on_event(Note(f"teacher: {teacher.card.source}"))
    recipe = "offline" if config.data else "adaptive"
    if recipe == "adaptive":
        batchnorm.require_statistics(teacher.module, name=teacher.card.architecture)
    _advise(config.student, teacher, on_event)
    student = _fresh(config, teacher)
    on_event(Note(f"student: {student.card.source}"))
    eval_set = _labelled(config.eval_data, teacher)
    image_set = _labelled(config.data, teacher)
    Runtime.settle(config)  # refuses before anything is created
    requested = requested_settings(config)
    folder = Path(config.out or default_folder("distill", config.teacher, requested))
    with open_run(folder) as run:
        config, runtime = prepare(run, config, teacher=teacher, image_steps=_image_steps)
        on_event = run.listener(on_event)
        on_event(Note(f"run: {folder}; {runtime.describe()}; compile {config.compile}"))
        job = Job(
            name="student",
            run=run,
            config=config,
            runtime=runtime,
            teacher=teacher,
            student=student,
            image_set=image_set,
            on_event=on_event,
            should_stop=should_stop,
        )
        images = RECIPES[recipe](job)
        baseline = None
        if _wants_baseline(config, teacher):
            baseline = replace(job, name="noise", student=_fresh(config, teacher))
            on_noise(baseline, count=len(images))
        data_free = config.data is None or _is_synthetic(config.data)
        saved = _save(run, job, data_free=data_free)
        with runtime.active():
            result = _accuracies(job, baseline, eval_set) | {
                "images": len(images),
                "image_source": image_set.source if image_set else f"made from {config.teacher}",
                "steps": int(config.steps),
                "data_free": data_free,
                "synthesis_seconds": job.seconds,
                "student_seconds": job.training.seconds,
            }
        run.finish({**result, "student": saved.name})
        on_event(Finished("distill", job.seconds + job.training.seconds))
    return Distillation(out=str(folder), student=str(saved), **result)


def _image_steps(config: DistillConfig) -> int:
    """Images times steps of the whole job; a student step counts like two of an image."""
    learned = 2 * int(config.steps) * config.batch_size
    if config.data:
        return learned
    return learned + batches(config) * int(config.image_batch_size) * int(config.image_steps)


def _fresh(config: DistillConfig, teacher: Classifier) -> Classifier:
    card = teacher.card
    return models.create(
        config.student,
        num_classes=card.num_classes,
        input_size=card.input_size,
        mean=card.mean,
        std=card.std,
        class_names=card.class_names,
        seed=config.seed,
    )


def _advise(student: str, teacher: Classifier, on_event: OnEvent) -> None:
    """An ImageNet network shrinks a small image to nothing before its first block."""
    side = max(teacher.card.input_size[1:])
    architecture = models.resolve(student)
    built_for = max(architecture.defaults().input_size[1:])
    if side > _SMALL or built_for <= 2 * _SMALL:
        return
    better = f"cifar_{architecture.name}"
    hint = f"; {better} is made for it" if better in models.all_names() else ""
    on_event(Hint(f"{student} is built for {built_for} px and the images have {side}{hint}"))


def _labelled(spec: str | None, teacher: Classifier) -> ImageSet | None:
    """Images as the teacher sees them.

    Raises: DataError: they have other classes.
    """
    if spec is None:
        return None
    image_set = open_images(spec, preprocessing=Preprocessing.of(teacher.card))
    names = image_set.class_names
    if names and len(names) != teacher.card.num_classes:
        raise DataError(
            f"{image_set.source} has {len(names)} classes, the teacher {teacher.card.num_classes}"
        )
    return image_set


def _is_synthetic(spec: str) -> bool:
    """Whether a data specification is a run folder of ours, or shards inside one."""
    path = Path(spec)
    return any((folder / "resolved.json").is_file() for folder in (path, *list(path.parents)[:2]))


def _wants_baseline(config: DistillConfig, teacher: Classifier) -> bool:
    if config.noise_baseline == "auto":
        return bool(config.eval_data) and max(teacher.card.input_size[1:]) <= _SMALL
    return config.noise_baseline == "on"


def _save(run: Run, job: Job, *, data_free: bool) -> Path:
    """Write `student.safetensors`, which loads alone."""
    student, teacher = job.student, job.teacher
    card = replace(student.card, weights="distilled", pretrained=True, data_free=data_free)
    path = run.folder / "student.safetensors"
    trained = f"dreamkd distill from {teacher.card.architecture}, sha256 {teacher.sha256()}"
    models.save(Classifier(student.module.cpu(), card), path, extra={"trained": trained})
    return path


def _accuracies(job: Job, baseline: Job | None, eval_set: ImageSet | None) -> dict[str, Any]:
    """Percent on the evaluation data, which trained nothing; None where there is none."""
    if eval_set is None:
        names = ("teacher_top1", "student_top1", "noise_top1", "agreement", "eval_source")
        return dict.fromkeys(names)
    images, labels = stack(eval_set)
    student = measure(job.student, images, labels, teacher=job.teacher)
    noise = measure(baseline.student, images, labels) if baseline else None
    return {
        "teacher_top1": measure(job.teacher, images, labels).top1,
        "student_top1": student.top1,
        "noise_top1": noise.top1 if noise else None,
        "agreement": student.agreement,
        "eval_source": eval_set.source,
    }
