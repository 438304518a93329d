"""What `distill` ends with: the student on disk, and how well it, and what stands beside it, do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamkd import models
from dreamkd.config import DistillConfig
from dreamkd.engine import enough_memory
from dreamkd.errors import Stopped
from dreamkd.job import Job
from dreamkd.metrics import measure
from dreamkd.models import Classifier

#: Inputs up to this many pixels get the noise baseline unasked: there it costs little.
_CHEAP = 64


def wants_baseline(config: DistillConfig, teacher: Classifier) -> bool:
    """Whether the same student is also trained on noise; `config` as it was given."""
    if config.noise_baseline == "auto":
        cheap = max(teacher.card.input_size[1:]) <= _CHEAP
        return bool(config.eval_data) and cheap and not config.budget_minutes
    return config.noise_baseline == "on"


def save(job: Job, student: Classifier, *, data_free: bool) -> Path:
    """Write `student.safetensors`, which loads alone."""
    card = replace(student.card, weights="distilled", pretrained=True, data_free=data_free)
    path = job.run.folder / "student.safetensors"
    teacher = job.teacher
    trained = f"dreamkd distill from {teacher.card.architecture}, sha256 {teacher.sha256()}"
    models.save(replace(student, card=card), path, extra={"trained": trained})
    return path


def accuracies(
    job: Job, student: Classifier, baseline: Classifier | None, *, images: int
) -> dict[str, Any]:
    """Percent on the evaluation data, which trained nothing.

    Where there is none, what was measured of this student before, and else None.

    Raises: Stopped: when asked; the same call measures.
    """
    data = job.measured
    if data is None:
        names = ("teacher_top1", "student_top1", "noise_top1", "agreement", "eval_source")
        unknown = dict.fromkeys((*names, "best_top1", "best_step")) | {"curve": []}
        before = job.run.result or {}
        return {name: before.get(name, value) for name, value in unknown.items()}

    def stop_if_asked() -> None:
        if job.should_stop():
            raise Stopped("the student is trained and saved; the same command measures it")

    with enough_memory("the student is trained and saved: dreamkd eval --batch-size measures it"):
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
