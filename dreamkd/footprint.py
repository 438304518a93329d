"""What a whole `distill` amounts to before it begins: steps, graphs, memory, room on the disk."""

from __future__ import annotations

from dreamkd import samples, softlabels, timetable
from dreamkd.config import DistillConfig
from dreamkd.course import full_steps, graphs
from dreamkd.engine import Work, require_memory
from dreamkd.files import require_room
from dreamkd.images import IMAGES
from dreamkd.models import Classifier
from dreamkd.runs import Run

#: What makes the bank smaller.
_FEWER = "lower --rounds, --first-batches or --image-batch-size"


def work(config: DistillConfig, *, workers: int, minutes: float | None) -> Work:
    """Each worker's part of the whole job: images alone, with a rival, and the student's steps.

    Compiling gains a tenth as much on a step of the student.

    Args:
        config: settled.
        minutes: that the job is given, if it is.
    """
    steps, kinds = int(config.steps) * int(config.batch_size) / 10, 1
    if timetable.synthesises(config):
        steps += _images(config) * full_steps(config)
        kinds += graphs(config, rival=timetable.any_competes(config))
    return Work(steps / workers, kinds, None if minutes is None else 60 * minutes)


def require(config: DistillConfig, student: Classifier, run: Run) -> str:
    """Check that the memory holds the job's images and the disk all that it may write.

    Args: config: settled.
    Returns: a line for people.
    Raises: RunError: one does not.
    """
    if timetable.synthesises(config):
        require_memory(_images(config), student.card.input_size, advice=_FEWER)
    return require_room(run.folder, _room(config, student, run))


def _images(config: DistillConfig) -> int:
    """Images that the whole job makes."""
    return timetable.batches(config) * int(config.image_batch_size)


def _room(config: DistillConfig, student: Classifier, run: Run) -> int:
    """Bytes that the run still writes, at most: images, labels, states, the student.

    A state is replaced by a whole new one, and the noise baseline has one of its own; a student's
    holds weights, their average, and the optimiser's moments.
    """
    size = student.card.input_size
    images = _images(config) - run.images if timetable.synthesises(config) else 0
    carried = IMAGES[config.images].carried(size) if timetable.synthesises(config) else 0
    views = int(config.steps) * int(config.batch_size)
    weights: int = sum(t.numel() * t.element_size() for t in student.module.state_dict().values())
    state = weights * (2 + (config.optimizer == "adamw") + (float(config.ema) > 0))
    kept = min(config.store_labels, student.card.num_classes)
    labels = softlabels.room(kept, views) - softlabels.written(run.folder)
    return samples.room(max(0, images), size) + max(0, labels) + 2 * carried + 3 * state + weights
