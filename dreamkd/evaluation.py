"""`dreamkd eval`: a classifier measured on labelled images."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamkd.data import ImageSet, batches, check_classes, check_labels
from dreamkd.engine import Runtime, enough_memory, lay_out, normalise, on_device, ordinary
from dreamkd.errors import DataError, ModelError
from dreamkd.events import OnEvent, Progress, ignore
from dreamkd.metrics import Accuracy, Agreement

if TYPE_CHECKING:
    from dreamkd.models import Classifier


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One row of the per-class table."""

    name: str
    count: int  # images, at least 1
    top1: float  # percent


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` measured."""

    top1: float  # percent
    top5: float  # percent; of min(5, num_classes) guesses
    loss: float  # mean cross-entropy in nats
    count: int  # images
    per_class: tuple[ClassResult, ...]  # classes that the data hold, in label order
    agreement: float | None  # percent of images on which the teacher says the same; None without
    source: str  # what was read

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@ordinary()
def evaluate(
    classifier: Classifier,
    image_set: ImageSet,
    *,
    teacher: Classifier | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    batch_size: int = 256,
    workers: int | None = None,
    on_event: OnEvent = ignore,
) -> Evaluation:
    """Top-1, top-5, loss and per-class accuracy of `classifier`, agreement with `teacher`.

    The teacher sees the same pictures through its own preprocessing and normalisation. Both
    networks are put back as they were: device, training flags.

    Args:
        classifier: what is measured.
        image_set: labelled images, preprocessed for `classifier`.
        teacher: a network of the same classes.
        device: where both networks run.
        precision: "fp32", or "bf16" or "fp16" autocast; logits are compared in float32.
        batch_size: images in a forward pass; no result depends on it.
        workers: threads that decode; None for one per CPU, at most 16.
        on_event: told of `Progress` after every batch.

    Raises:
        DataError: a label, the class names or the channels of the data do not fit a network.
        ModelError: teacher and classifier have other classes, or logits are not finite.
        RunError: the device ran out of memory.
    """
    card = classifier.card
    networks = [classifier] if teacher is None else [classifier, teacher]
    for network in networks:
        check_classes(image_set, network.card)
    _check_pair(classifier, teacher, image_set)
    accuracy, agreement = Accuracy(card.num_classes, device=device), Agreement(device=device)
    done = 0
    with ExitStack() as stack:
        stack.enter_context(enough_memory("lower --batch-size"))
        for network in networks:
            stack.enter_context(on_device(network.module, device))
        stack.enter_context(Runtime(str(device), precision, torch.get_num_threads()).autocast())
        for network in networks:
            stack.callback(lay_out(network.module, network.card.input_size))
        views = stack.enter_context(closing(_views(image_set, teacher, batch_size, workers)))
        stack.enter_context(torch.inference_mode())
        for images, teacher_images, labels in views:
            check_labels(labels, card, image_set)
            logits = _logits(classifier, images, device)  # (B, num_classes)
            accuracy.add(logits, labels.to(device))
            if teacher is not None:
                agreement.add(logits, _logits(teacher, teacher_images, device))
            done += len(labels)
            on_event(Progress("evaluate", done, len(image_set), "images"))
    if not math.isfinite(accuracy.loss):
        raise ModelError(
            f"{card.architecture} gives logits that are not finite on {image_set.source}; look at "
            "it with dreamkd inspect, or try --precision fp32"
        )
    return Evaluation(
        top1=accuracy.top1,
        top5=accuracy.top5,
        loss=accuracy.loss,
        count=accuracy.count,
        per_class=_table(accuracy, card.class_names or image_set.class_names),
        agreement=None if teacher is None else agreement.percent,
        source=image_set.source,
    )


def _views(
    image_set: ImageSet, teacher: Classifier | None, batch_size: int, workers: int | None
) -> Generator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of (images for the classifier, the same for the teacher, labels)."""
    with closing(batches(image_set, batch_size, workers=workers)) as own:
        theirs = image_set if teacher is None else image_set.wanted_by(teacher.card)
        if theirs.preprocessing == image_set.preprocessing:
            for images, labels in own:
                yield images, images, labels
            return
        with closing(batches(theirs, batch_size, workers=workers)) as others:
            for (images, labels), (teacher_images, _) in zip(own, others, strict=True):
                yield images, teacher_images, labels


def _logits(network: Classifier, images: Tensor, device: torch.device | str) -> Tensor:
    """Logits of uint8 images (B, C, H, W) in the network's own normalisation."""
    inputs = normalise(images.to(device), mean=network.card.mean, std=network.card.std)
    logits: Tensor = network.module(inputs.contiguous(memory_format=torch.channels_last))
    return logits


def _check_pair(classifier: Classifier, teacher: Classifier | None, image_set: ImageSet) -> None:
    channels, wanted = image_set.preprocessing.input_size[0], classifier.card.input_size[0]
    if channels != wanted:
        raise DataError(
            f"images are preprocessed to {channels} channels, but {classifier.card.architecture} "
            f"takes {wanted}"
        )
    if teacher is not None:
        whose = f"teacher {teacher.card.architecture}"
        classifier.card.require_classes(teacher.card, whose=whose, role="the model")


def _table(accuracy: Accuracy, names: Sequence[str]) -> tuple[ClassResult, ...]:
    return tuple(
        ClassResult(name=names[k] if names else str(k), count=count, top1=100 * hits / count)
        for k, (count, hits) in enumerate(accuracy.per_class())
        if count
    )
