"""`dreamkd distill`: a student trained without the teacher's data.

Two recipes so far: `offline` trains on shards that exist, `adaptive` synthesises as it goes, each
fresh batch against the student of its time (Adaptive DeepInversion, seed section 2.3).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkd import batchnorm, models
from dreamkd.bank import Bank
from dreamkd.config import DistillConfig
from dreamkd.data import ImageSet, Preprocessing, open_images, stack
from dreamkd.engine import Runtime, to_uint8
from dreamkd.errors import DataError, Stopped
from dreamkd.events import Finished, Hint, Note, OnEvent, Progress, ignore
from dreamkd.images import Pixels
from dreamkd.labels import label_range
from dreamkd.metrics import measure
from dreamkd.models import Classifier
from dreamkd.preparation import prepare
from dreamkd.randomness import generator_for
from dreamkd.runs import Run, default_folder, open_run, requested_settings
from dreamkd.synthesis import Batch, Rival, Synthesiser, watcher
from dreamkd.training import Training

#: Fresh batches arrive over this share of the student's steps, so that the last is learned too.
_SYNTHESIS_SHARE = 2 / 3

#: Seconds between two saved states.
_SAVE_EVERY = 20.0

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
    Runtime.settle(config)  # refuses before anything is created
    requested = requested_settings(config)
    teacher_name = config.teacher
    folder = Path(config.out) if config.out else default_folder("distill", teacher_name, requested)
    with open_run(folder) as run:
        config, runtime = prepare(run, config, teacher=teacher, image_steps=_image_steps)
        on_event = run.listener(on_event)
        on_event(Note(f"run: {folder}; {runtime.describe()}; compile {config.compile}"))
        job = Job("student", run, config, runtime, teacher, student, on_event, should_stop)
        images, source, synthetic = RECIPES[recipe](job)
        baseline = None
        if _wants_baseline(config, teacher):
            baseline = Job(
                "noise",
                run,
                config,
                runtime,
                teacher,
                _fresh(config, teacher),
                on_event,
                should_stop,
            )
            on_noise(baseline, count=len(images))
        saved = _save(run, job, data_free=synthetic)
        with runtime.active():
            result = _result(job, baseline, eval_set)
        result |= {"images": len(images), "image_source": source, "data_free": synthetic}
        run.finish({**result, "student": saved.name})
        on_event(Finished("distill", job.seconds + job.training.seconds))
    return Distillation(out=str(folder), student=str(saved), **result)


class Job:
    """One student on its way, and the state by which it resumes."""

    def __init__(
        self,
        name: str,
        run: Run,
        config: DistillConfig,
        runtime: Runtime,
        teacher: Classifier,
        student: Classifier,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> None:
        self.name = name
        self.run = run
        self.config = config
        self.runtime = runtime
        self.teacher = teacher
        self.on_event = on_event
        self.should_stop = should_stop
        self.training = Training(student, teacher, config, runtime=runtime, on_event=on_event)
        self.seconds = 0.0  # of synthesis, over all processes
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the saved state, if there is one."""
        saved = self.run.load_state(self.name)
        if saved is not None:
            self.training.restore(*saved)
            self.seconds = float(saved[1]["synthesis_seconds"])

    def save(self) -> None:
        """Keep the state."""
        tensors, facts = self.training.state()
        self.run.save_state(self.name, tensors, {**facts, "synthesis_seconds": self.seconds})
        self._saved_at = time.monotonic()

    def train(self, images: Tensor, *, until: int) -> None:
        """Advance the student to step `until`, saving now and then and when asked to stop."""

        def on_step(step: int, terms: dict[str, float]) -> None:
            self.on_event(Progress(self.name, step, self.config.steps, "steps", terms))
            stop = self.should_stop()
            if stop or step == until or time.monotonic() - self._saved_at > _SAVE_EVERY:
                self.save()
            if stop:
                raise Stopped("the student's state is saved; the same command continues")

        self.training.advance(images, until=until, on_step=on_step)


def offline(job: Job) -> tuple[Tensor, str, bool]:
    """Train on images that exist: (images, their source, whether they are synthetic)."""
    assert job.config.data is not None
    image_set = _labelled(job.config.data, job.teacher)
    assert image_set is not None
    images, _ = stack(image_set)
    job.resume()
    with job.training:
        job.train(images, until=job.config.steps)
    return images, image_set.source, _is_synthetic(job.config.data)


def adaptive(job: Job) -> tuple[Tensor, str, bool]:
    """Adaptive DeepInversion: a first bank, then fresh batches against the current student.

    The bank is replayed and never thrown away. Batch k is a function of the settings and of the
    student at step `_begins(k)`; training between two batches is a function of (bank, step).
    """
    config, card = job.config, job.teacher.card
    size = int(config.image_batch_size)
    count = config.first_batches + config.rounds
    bank = Bank(job.run, on_event=job.on_event)
    held = [bank.holds(k) for k in range(count)]
    job.resume()
    if any(not held[k] and job.training.step > _begins(k, config) for k in range(count)):
        # A batch that the student has learned is lost: it needs the student of its time.
        job.on_event(Hint("a shard is missing or damaged: the student is trained again"))
        job.training.restart()
    images = torch.empty((count * size, *card.input_size), dtype=torch.uint8)
    with ExitStack() as stack:
        stack.enter_context(job.training)
        synthesise = _Lazy(job, stack)
        for k in range(count):
            job.train(images[: k * size], until=_begins(k, config))
            if not held[k]:
                began = time.perf_counter()
                batch = synthesise(k, count)
                facts = batch.facts(class_names=card.class_names, predictions={})
                line = batch.summary(predictions={})
                start = k * size
                bank.add(k, batch.images, batch.labels, start=start, facts=facts, line=line)
                bank.write_contact_sheet()
                job.seconds += time.perf_counter() - began
            images[k * size : (k + 1) * size] = bank.read(k)[0]
        job.train(images, until=config.steps)
    return images, f"synthesised from {config.teacher}", True


def on_noise(job: Job, *, count: int) -> None:
    """Train the same student on the noise that synthesis starts from: the baseline."""
    card = job.teacher.card
    noise = Pixels(
        (count, *card.input_size),
        mean=card.mean,
        std=card.std,
        clip=True,
        generator=generator_for(job.config.seed, "noise"),
    )
    images = to_uint8(noise.inputs().detach(), mean=card.mean, std=card.std)
    job.resume()
    with job.training:
        job.train(images, until=job.config.steps)


class _Lazy:
    """The synthesisers of a run, each set up when its first batch is due."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._job = job
        self._stack = stack
        self._rival: Classifier | None = None
        self._made: dict[bool, Synthesiser] = {}

    def __call__(self, k: int, count: int) -> Batch:
        """Batch `k` of `count`, against the student as it is now if the first bank is complete."""
        job, config = self._job, self._job.config
        competes = k >= config.first_batches and config.competition > 0
        if competes not in self._made:
            self._made[competes] = self._stack.enter_context(self._synthesiser(competes))
        if competes:
            assert self._rival is not None
            self._rival.module.load_state_dict(job.training.student.module.state_dict())
        size = int(config.image_batch_size)
        classes = range(job.teacher.card.num_classes)
        phase = f"images {k + 1} of {count}"
        return self._made[competes].batch(
            label_range(classes, k * size, (k + 1) * size, seed=config.seed),
            generator=generator_for(config.seed, "batch", k),
            on_step=watcher(phase, config, job.on_event, job.should_stop),
        )

    def _synthesiser(self, competes: bool) -> Synthesiser:
        job, config = self._job, self._job.config
        rival = None
        if competes:
            student = job.training.student
            self._rival = Classifier(copy.deepcopy(student.module), student.card)
            rival = Rival(self._rival, config.competition, config.competition_temperature)
        return Synthesiser(
            job.teacher,
            config,
            runtime=job.runtime,
            rival=rival,
            compiled=config.compile == "on",
            on_event=job.on_event,
        )


def _begins(k: int, config: DistillConfig) -> int:
    """The student's step at which batch `k` is made; 0 for the first bank."""
    if k < config.first_batches:
        return 0
    return round(_SYNTHESIS_SHARE * config.steps * (k - config.first_batches + 1) / config.rounds)


def _image_steps(config: DistillConfig) -> int:
    """Images times steps of the whole job; a student step counts like two of an image."""
    learned = 2 * config.steps * config.batch_size
    if config.data:
        return learned
    batches = config.first_batches + config.rounds
    return learned + batches * int(config.image_batch_size) * int(config.image_steps)


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
    student, teacher = job.training.student, job.teacher
    card = replace(student.card, weights="distilled", pretrained=True, data_free=data_free)
    path = run.folder / "student.safetensors"
    trained = f"dreamkd distill from {teacher.card.architecture}, sha256 {teacher.sha256()}"
    models.save(Classifier(student.module.cpu(), card), path, extra={"trained": trained})
    return path


def _result(job: Job, baseline: Job | None, eval_set: ImageSet | None) -> dict[str, Any]:
    """Accuracies on the evaluation data, which trained nothing, and times."""
    result: dict[str, Any] = {
        "teacher_top1": None,
        "student_top1": None,
        "noise_top1": None,
        "agreement": None,
        "eval_source": None,
        "steps": job.config.steps,
        "synthesis_seconds": job.seconds,
        "student_seconds": job.training.seconds,
    }
    if eval_set is None:
        return result
    images, labels = stack(eval_set)
    student = measure(job.training.student, images, labels, teacher=job.teacher)
    result["teacher_top1"] = measure(job.teacher, images, labels).top1
    result["student_top1"], result["agreement"] = student.top1, student.agreement
    if baseline is not None:
        result["noise_top1"] = measure(baseline.training.student, images, labels).top1
    return result | {"eval_source": eval_set.source}


RECIPES: dict[str, Callable[[Job], tuple[Tensor, str, bool]]] = {
    "offline": offline,
    "adaptive": adaptive,
}
