"""One batch of images from a teacher, whatever the method; inversion and distillation both use it.

    with Synthesiser(teacher, config, ...) as synthesiser:
        batch = synthesiser.batch(labels, generator=generator)

The hooks and the compiled graph are set up once and serve every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor

from dreamkd import losses
from dreamkd.augment import Roll, draw_roll, roll
from dreamkd.batchnorm import watch
from dreamkd.config import ImageConfig
from dreamkd.engine import (
    Runtime,
    check_finite,
    compile_step,
    frozen,
    normalise,
    on_device,
    rate,
    to_uint8,
    twin,
)
from dreamkd.errors import Stopped
from dreamkd.events import OnEvent, Progress, ignore
from dreamkd.images import Pixels
from dreamkd.models import Card, Classifier

#: Steps between two looks at the terms: each look is a host sync.
LOOK = 25


@dataclass(frozen=True)
class Rival:
    """The student that images should disagree about with the teacher (seed Eq. 8-9)."""

    student: Classifier
    weight: float  # alpha_c
    temperature: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Synthesised images and what the teacher makes of them, after rounding to uint8."""

    images: Tensor  # uint8 (B, C, H, W), CPU
    labels: Tensor  # int64 (B,)
    predictions: Tensor  # int64 (B,): the teacher's top-1
    confidences: Tensor  # float32 (B,): the teacher's probability of the label
    r_feature: float  # of the kept images, unweighted; 0 without batch norm
    terms: dict[str, float]  # weighted terms of the last step

    def facts(
        self, *, class_names: Sequence[str], predictions: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """One record per image: class, the teacher's view of it, the verifiers' top-1."""
        return [
            {
                "class_name": class_names[label] if class_names else str(label),
                "teacher_top1": int(self.predictions[i]),
                "teacher_probability": round(float(self.confidences[i]), 6),
                "verifiers": {name: int(top1[i]) for name, top1 in predictions.items()},
            }
            for i, label in enumerate(self.labels.tolist())
        ]

    def summary(self, *, predictions: Mapping[str, Tensor]) -> dict[str, Any]:
        """The batch's line in the manifest: terms, R_feature, percent classified as asked."""

        def percent(top1: Tensor) -> float:
            return round(100 * float((top1 == self.labels).float().mean()), 4)

        return {
            "terms": {name: round(value, 6) for name, value in self.terms.items()},
            "r_feature": round(self.r_feature, 4),
            "teacher_top1": percent(self.predictions),
            "verifiers": {name: percent(top1) for name, top1 in predictions.items()},
        }


class Synthesiser:
    """Optimises batches of images against one frozen teacher (seed Eq. 2, 7, 9)."""

    def __init__(
        self,
        teacher: Classifier,
        config: ImageConfig,
        *,
        runtime: Runtime,
        statistics: bool = True,
        rival: Rival | None = None,
        compiled: bool = False,
        on_event: OnEvent = ignore,
    ) -> None:
        """Prepare; nothing on the models is touched before `with`.

        Args:
            config: settled (no `auto` left) for the teacher's input size.
            statistics: whether R_feature is part of the loss (not so in DeepDream).
            rival: the student of Adaptive DeepInversion; its weights may change between batches.
        """
        self.teacher = teacher
        self.config = config
        self.runtime = runtime
        self._statistics = statistics
        self._rival = rival
        self._compiled = compiled
        self._on_event = on_event
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        device = self.runtime.device
        # A twin carries the hooks: others who run the teacher meanwhile do not pay for them.
        teacher = self._stack.enter_context(on_device(self.teacher.module, device))
        self._model = self._stack.enter_context(frozen(twin(teacher)))
        if self._rival is not None:
            self._stack.enter_context(on_device(self._rival.student.module, device))
        self._watched = self._stack.enter_context(watch(self._model))
        self._stack.enter_context(self.runtime.active())
        self._step: Callable[[Tensor, Roll, Tensor], Tensor] = self._terms
        if self._compiled:
            self._step = compile_step(self._terms, on_event=self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def batch(
        self,
        labels: Tensor,
        *,
        generator: Generator,
        on_step: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Batch:
        """Synthesise one image per label.

        Args:
            labels: int64 (B,), the class each image should show.
            generator: source of the start and of every view; the batch is a function of it.
            on_step: called after every step with its number and the newest weighted terms; may
                raise to stop.
        Raises: DivergedError: a term became NaN or infinite.
        """
        config, card, device = self.config, self.teacher.card, self.runtime.device
        channels, height, width = card.input_size
        images = Pixels(
            (len(labels), channels, height, width),
            mean=card.mean,
            std=card.std,
            clip=config.clip == "on",
            generator=generator,
            device=device,
        )
        targets = labels.to(device)
        betas = (float(config.image_beta1), float(config.image_beta2))
        optimizer = torch.optim.Adam(images.parameters(), betas=betas, fused=True)
        steps, lr = int(config.image_steps), float(config.image_lr)
        terms: dict[str, float] = {}
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * rate(
                step, steps, warmup=int(config.image_warmup), schedule=config.image_schedule
            )
            view = draw_roll(
                (len(labels), height, width),
                shift=int(config.jitter),
                flip=config.flip == "on",
                generator=generator,
            )
            view = Roll(*(index.to(device, non_blocking=True) for index in view))
            weighted = self._run(images.inputs(), view, targets)
            optimizer.zero_grad()
            torch.autograd.backward(weighted.sum() * self.runtime.loss_scale)
            images.scale_gradients(1 / self.runtime.loss_scale)
            optimizer.step()
            images.project()
            if step % LOOK == LOOK - 1 or step == steps - 1:
                terms = dict(zip(self.term_names, weighted.tolist(), strict=True))  # host sync
                check_finite(terms, where=f"image step {step + 1} of {steps}")
            if on_step is not None:
                on_step(step + 1, terms)
        return self._keep(images.inputs().detach(), targets, terms)

    @property
    def term_names(self) -> list[str]:
        """The terms of the loss, in the order in which the step returns them."""
        names = ["ce"]
        names += ["r_feature"] if self._statistics else []
        names += [name for name in _PRIORS if getattr(self.config, name)]
        return names + (["competition"] if self._rival else [])

    def _run(self, x: Tensor, view: Roll, labels: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self._step(x, view, labels)

    def _terms(self, x: Tensor, view: Roll, labels: Tensor) -> Tensor:
        """The weighted terms of Eq. 2, 7 or 9, (terms,): compiled into one graph with the network.

        x: (B, C, H, W) normalised for the teacher; labels: (B,).
        """
        config = self.config
        inputs = roll(x, view).contiguous(memory_format=torch.channels_last)
        logits = self._model(inputs)
        stats = self._watched.take()
        terms = [float(config.ce) * losses.classification(logits, labels)]
        if self._statistics:
            scale = float(config.first_bn)
            terms.append(float(config.r_feature) * losses.r_feature(stats, first_scale=scale))
        for name, prior in _PRIORS.items():
            weight = float(getattr(config, name))
            if weight:
                terms.append(weight * prior(x))
        if self._rival is not None:
            student = self._rival.student
            theirs = student.module(renormalise(inputs, self.teacher.card, student.card))
            disagreement = losses.competition(logits, theirs, temperature=self._rival.temperature)
            terms.append(self._rival.weight * disagreement)
        return torch.stack(terms)

    @torch.no_grad()
    def _keep(self, x: Tensor, labels: Tensor, terms: dict[str, float]) -> Batch:
        """Round the images as they will be stored, and measure those."""
        card = self.teacher.card
        images = to_uint8(x, mean=card.mean, std=card.std)
        logits = self._model(normalise(images, mean=card.mean, std=card.std))
        stats = self._watched.take()
        probabilities = logits.float().softmax(1)
        return Batch(
            images=images.cpu(),
            labels=labels.cpu(),
            predictions=logits.argmax(1).cpu(),
            confidences=probabilities.gather(1, labels[:, None])[:, 0].cpu(),
            r_feature=float(losses.r_feature(stats)) if stats else 0.0,
            terms=terms,
        )


def watcher(
    phase: str, config: ImageConfig, on_event: OnEvent, should_stop: Callable[[], bool]
) -> Callable[[int, dict[str, float]], None]:
    """An `on_step` that reports progress and stops when asked: the batch is then made again.

    Raises (when called): Stopped.
    """

    def watch_step(step: int, terms: dict[str, float]) -> None:
        total = int(config.image_steps)
        if step % LOOK == 0 or step == total:
            on_event(Progress(phase, step, total, "steps", terms))
        if should_stop():
            raise Stopped("finished batches are kept; the same command continues")

    return watch_step


def renormalise(inputs: Tensor, source: Card, target: Card) -> Tensor:
    """Inputs of one network as inputs of another: x * std_s + mean_s, then (x - mean_t) / std_t."""
    if (source.mean, source.std) == (target.mean, target.std):
        return inputs
    scale = _per_channel([a / b for a, b in zip(source.std, target.std, strict=True)], inputs)
    offset = _per_channel(
        [(m - n) / t for m, n, t in zip(source.mean, target.mean, target.std, strict=True)],
        inputs,
    )
    return inputs * scale + offset


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1)


_PRIORS: dict[str, Callable[[Tensor], Tensor]] = {
    "tv_l1": losses.tv_l1,
    "tv_l2": losses.tv_l2,
    "l2": losses.l2,
}
