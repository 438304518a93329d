"""One batch of images from a teacher, whatever the method; inversion and distillation both use it.

    with Synthesiser.of(teacher, config, runtime=runtime) as synthesiser:
        batch = synthesiser.batch(labels, generator=generator)

The hooks and the compiled graphs are set up once and serve every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Self

import torch
from torch import Generator, Tensor

from dreamkd.augment import View, draw_view, smallest_crop
from dreamkd.batch import Batch, Drawn
from dreamkd.config import DistillConfig, ImageConfig, InvertConfig
from dreamkd.engine import LOOK, Runtime, check_finite, rate, to_uint8
from dreamkd.errors import DivergedError
from dreamkd.events import Hint, OnEvent, ignore
from dreamkd.images import IMAGES
from dreamkd.models import Classifier
from dreamkd.moments import Moments, blend
from dreamkd.objective import Average, Objective, Rival, chunks
from dreamkd.observation import Observer

#: A batch that diverges begins again at half the rate, at most so often.
RESTARTS = 3

#: Told of every step: its number, steps in all, the newest weighted terms. May raise to stop.
OnStep = Callable[[int, int, dict[str, float]], None]


class Synthesiser:
    """Optimises batches of images against one frozen teacher (seed Eq. 2, 7, 9)."""

    def __init__(self, objective: Objective, *, seed: int = 0, on_event: OnEvent = ignore) -> None:
        """Prepare; nothing on the models is touched before `with`.

        Args:
            objective: the loss and its networks; entered and left with this.
            seed: of what is learned over batches, by a generator.
        """
        self._objective = objective
        self._on_event = on_event
        self.teacher, self.config = objective.teacher, objective.config
        self.runtime = objective.runtime
        card, config = self.teacher.card, self.config
        self._images = IMAGES[config.images](
            card.input_size,
            mean=card.mean,
            std=card.std,
            clip=config.clip == "on",
            start=config.start,
            seed=seed,
            device=self.runtime.device,
        )
        self._observer = Observer(self.teacher, prior=objective.prior, device=self.runtime.device)
        self._momentum = float(config.bn_momentum) if objective.statistics else 0.0
        self._average: list[Moments] | None = None
        self._stack = ExitStack()

    @classmethod
    def of(
        cls,
        teacher: Classifier,
        config: InvertConfig | DistillConfig,
        *,
        runtime: Runtime,
        statistics: bool = True,
        prior: Classifier | None = None,
        student: Classifier | None = None,
        on_event: OnEvent = ignore,
    ) -> Self:
        """As a command settled it; arguments as of `Objective`, `student` is the rival."""
        objective = Objective(
            teacher,
            config,
            runtime=runtime,
            statistics=statistics,
            prior=prior,
            rival=Rival.of(student, config) if student is not None else None,
            compiled=config.compile == "on",
            on_event=on_event,
        )
        return cls(objective, seed=config.seed, on_event=on_event)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._objective)
        self._observe = self._stack.enter_context(self._observer)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def batch(
        self,
        labels: Tensor,
        *,
        generator: Generator,
        compete: bool = True,
        name: str = "the batch",
        on_step: OnStep | None = None,
    ) -> Batch:
        """Synthesise one image per label; begin again at half the rate if a term diverges.

        Args:
            labels: int64 (B,), the class each image should show.
            generator: source of the start and of every view; the batch is a function of it, and,
                where something is carried from batch to batch, of the batches before.
            compete: whether the rival takes part, if there is one.
            name: of the batch, in messages.
        Raises: DivergedError: a term became NaN or infinite, after `RESTARTS` restarts too.
        """
        lr, start, restarts = float(self.config.image_lr), generator.get_state(), RESTARTS
        while True:
            try:
                return self._batch(labels, generator, lr, compete=compete, name=name, told=on_step)
            except DivergedError as error:
                if restarts == 0:
                    raise
                lr, restarts = lr / 2, restarts - 1
                self._on_event(Hint(f"{error.fact}: it begins again at a rate of {lr:g}"))
                generator.set_state(start)

    def _batch(
        self,
        labels: Tensor,
        generator: Generator,
        lr: float,
        *,
        compete: bool,
        name: str,
        told: OnStep | None,
    ) -> Batch:
        """One attempt at a batch, at peak rate `lr`; one that diverges leaves nothing behind."""
        config, images = self.config, self._images
        images.begin(len(labels), generator)
        targets = labels.to(self.runtime.device)
        average = Average(self._average, self._momentum) if self._average is not None else None
        total, done, terms = int(config.image_steps), 0, dict[str, float]()
        best = _Best() if config.keep == "best" else None
        for factor, steps in stages(config):
            optimizer = self._optimizer()
            for step in range(steps):
                self._set_rate(optimizer, step, steps, peak=lr)
                view = self._view(len(labels), factor, share=done / total, generator=generator)
                with self.runtime.autocast():
                    x = images.inputs()
                loss = self._objective(
                    x, targets, view, factor=factor, compete=compete, average=average
                )
                if best is not None and factor == 1:
                    best.offer(x.detach(), loss.scores)
                optimizer.zero_grad()
                torch.autograd.backward(x, loss.gradient)
                images.learn()
                optimizer.step()
                images.project()
                done += 1
                if done % LOOK == 0 or done == total:
                    values = loss.terms.tolist()  # host sync
                    names = self._objective.term_names(compete=compete)
                    terms = dict(zip(names, values, strict=True))
                    check_finite(terms, where=f"image step {done} of {total} of {name}")
                if told is not None:
                    told(done, total, terms)
        with torch.no_grad(), self.runtime.autocast():
            x = images.inputs().detach()
        finite = {"the images": 0.0 if bool(x.isfinite().all()) else math.nan}  # host sync
        check_finite(finite, where=f"the end of {name}")
        images.end(lr=lr)
        return self._finish(x if best is None else best.images, labels, terms, lr=lr)

    def draw(self, count: int, *, generator: Generator) -> Drawn:
        """Further images of the generator as it was at the end of the last batch.

        They cost one pass forward each; which class they show is for the teacher to say.
        """
        card, size = self.teacher.card, int(self.config.image_batch_size)
        made = []
        for part in chunks(count, size):  # the generator's batch norm sees as many as it learned on
            with self.runtime.autocast():
                x = self._images.draw(part.stop - part.start, generator)
            made.append(to_uint8(x.contiguous(), mean=card.mean, std=card.std).cpu())
        images = torch.cat(made)
        seen = self._observe(images, None)
        return Drawn(images, seen.predictions, seen.confidences, seen.r_feature)

    @property
    def sequential(self) -> bool:
        """Whether a batch depends on those before it."""
        return self._images.sequential or self._momentum > 0

    def state(self) -> dict[str, Tensor]:
        """What is carried to the next batch; empty unless `sequential`."""
        tensors = {f"images.{name}": value for name, value in self._images.state().items()}
        for i, layer in enumerate(self._average or ()):
            for name, value in layer._asdict().items():
                tensors[f"average.{i:04d}.{name}"] = value
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave; from the beginning if it is empty."""
        prefix = "images."
        images = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        self._images.restore(images)
        names = sorted(name for name in state if name.startswith("average."))
        fields = len(Moments._fields)
        layers = [names[i : i + fields] for i in range(0, len(names), fields)]
        self._average = [
            Moments(
                **{name.rpartition(".")[2]: state[name].to(self.runtime.device) for name in layer}
            )
            for layer in layers
        ] or None

    def _optimizer(self) -> torch.optim.Adam:
        """A fresh Adam: each resolution has its own moments."""
        betas = (float(self.config.image_beta1), float(self.config.image_beta2))
        return torch.optim.Adam(self._images.parameters(), betas=betas, fused=True)

    def _set_rate(self, optimizer: torch.optim.Adam, step: int, steps: int, *, peak: float) -> None:
        warmup = min(int(self.config.image_warmup), steps // 2)
        factor = rate(step, steps, warmup=warmup, schedule=self.config.image_schedule)
        for group in optimizer.param_groups:
            group["lr"] = peak * factor * group["scale"]

    def _view(self, count: int, factor: int, *, share: float, generator: Generator) -> View:
        """Draw how the network sees each image; `share` of the batch's steps are done."""
        config = self.config
        _, height, width = self.teacher.card.input_size
        view = draw_view(
            (count, height // factor, width // factor),
            shift=round(int(config.jitter) / factor),
            flip=config.flip == "on",
            smallest=smallest_crop(share, end=float(config.crop)),
            generator=generator,
        )
        return view.to(self.runtime.device)

    def _finish(self, x: Tensor, labels: Tensor, terms: dict[str, float], *, lr: float) -> Batch:
        """Round the images as they will be stored, look at those, and remember their statistics."""
        card, momentum = self.teacher.card, self._momentum
        images = to_uint8(x.contiguous(), mean=card.mean, std=card.std).cpu()
        seen = self._observe(images, labels)
        if momentum > 0:
            parts = [seen.stats] if self._average is None else [self._average, seen.stats]
            self._average = blend(parts, [1.0] if len(parts) == 1 else [momentum, 1 - momentum])
        return Batch(
            images=images,
            labels=labels.cpu(),
            predictions=seen.predictions,
            confidences=seen.confidences,
            r_feature=seen.r_feature,
            r_feature_chance=seen.r_feature_chance,
            lr=lr,
            terms=terms,
        )


class _Best:
    """The best version of each image so far, by what it has of the loss for itself."""

    images: Tensor

    def __init__(self) -> None:
        self._scores: Tensor | None = None

    def offer(self, images: Tensor, scores: Tensor) -> None:
        """Keep those of `images` (B, C, H, W) whose `scores` (B,) are lower than before."""
        if self._scores is None:
            self.images, self._scores = images.clone(), scores
            return
        better = scores < self._scores
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self._scores = torch.where(better, scores, self._scores)


def stages(config: ImageConfig) -> Iterator[tuple[int, int]]:
    """(factor, steps) of each resolution, coarse to full: `--stages 2,1` is two thirds at half."""
    lengths = [int(length) for length in config.stages]
    total, whole, before = int(config.image_steps), sum(lengths), 0
    for i, length in enumerate(lengths):
        before += length
        start, stop = total * (before - length) // whole, total * before // whole
        if stop > start:
            yield 2 ** (len(lengths) - 1 - i), stop - start
