"""One batch of images from a teacher, whatever the method; inversion and distillation both use it.

    with Synthesiser.of(networks, config, runtime=runtime) as synthesiser:
        batch = synthesiser.batch(labels, generator=generator)

The hooks and the compiled graphs are set up once and serve every batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import torch
from torch import Generator, Tensor

from dreamkd.augment import View, draw_view, smallest_crop
from dreamkd.averaging import MovingAverage
from dreamkd.batch import Attempt, Batch, Best, OnStep
from dreamkd.config import DistillConfig, InvertConfig
from dreamkd.course import Course, refining_steps, steps_per_batch
from dreamkd.engine import LOOK, Runtime, check_finite, diverged, to_uint8
from dreamkd.errors import DivergedError
from dreamkd.events import Hint, OnEvent, ignore
from dreamkd.images import IMAGES, Images, Pixels
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.observation import Observer
from dreamkd.states import under

Kind = TypeVar("Kind", bound=Images)

#: A batch that diverges begins again at half the rate, at most so often.
RESTARTS = 3


class Synthesiser:
    """Optimises batches of images against one frozen teacher (Yin et al. 2020, Eq. 2, 7, 9)."""

    def __init__(self, objective: Objective, *, seed: int = 0, on_event: OnEvent = ignore) -> None:
        """Prepare; nothing on the models is touched before `with`.

        Args:
            objective: the loss and its networks; entered and left with this.
            seed: of what is learned over batches, by a generator.
        """
        self._objective = objective
        self._on_event = on_event
        self.teacher, self.config = objective.networks.teacher, objective.config
        self.runtime = objective.runtime
        config = self.config
        self._images = self._parameterised(
            IMAGES[config.images], clip=config.clip == "on", start=config.start, seed=seed
        )
        self._refined: Pixels | None = None  # what the images become, if their pixels are refined
        if refining_steps(config):
            self._refined = self._parameterised(Pixels, clip=config.clip != "off")
        self._average = MovingAverage(float(config.bn_momentum) if objective.statistics else 0.0)

    @classmethod
    def of(
        cls,
        networks: Networks,
        config: InvertConfig | DistillConfig,
        *,
        runtime: Runtime,
        statistics: bool = True,
        on_event: OnEvent = ignore,
    ) -> Self:
        """As a command settled it; arguments as of `Objective`."""
        objective = Objective(
            networks,
            config,
            runtime=runtime,
            statistics=statistics,
            compiled=config.compile == "on",
            on_event=on_event,
        )
        return cls(objective, seed=config.seed, on_event=on_event)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._objective)
            self._observe = stack.enter_context(
                Observer(
                    self.teacher,
                    prior=self._objective.networks.prior,
                    border=self.config.border(),
                    chunk=int(self.config.image_chunk),
                    device=self.runtime.device,
                )
            )
            if self._average:
                blank = torch.zeros((2, *self.teacher.card.input_size), dtype=torch.uint8)
                seen = self._observe(blank, torch.tensor([0, 0]))
                assert seen.moments is not None
                self._average.begin(seen.moments)
            self._stack = stack.pop_all()
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
        start, restart = generator.get_state(), 0
        while True:
            attempt = Attempt(
                labels=labels.to(self.runtime.device),
                generator=generator,
                compete=compete,
                name=name,
                total=steps_per_batch(self.config),
                told=on_step,
                best=Best() if self.config.keep == "best" else None,
            )
            try:
                return self._batch(attempt, share=0.5**restart)
            except DivergedError as error:
                if restart == RESTARTS:
                    raise
                restart += 1
                again = f"it begins again at {0.5**restart:g} of the rate"
                self._on_event(Hint(f"{error.fact}: {again}"))
                generator.set_state(start)

    def _batch(self, attempt: Attempt, *, share: float) -> Batch:
        """One attempt, at `share` of the rates; one that diverges leaves nothing behind."""
        made, final = self._optimised(attempt, share=share)
        kept = self._rounded(final if attempt.best is None else attempt.best.images)
        seen = shown = self._observe(kept, attempt.labels)
        # Stored statistics come from the views of training, so R_feature is measured on such views;
        # where borders wrap around, as in no training, on the images as they are.
        view = self._view(1, attempt) if self.config.border() != "wrap" else None
        if view is not None:
            shown = self._observe(kept, attempt.labels, view=view)
        if self._average:
            # Of what the average had a part in, and not of what pixels became without it.
            own = shown
            if final is not made:
                own = self._observe(self._rounded(made), attempt.labels, view=view)
            assert own.moments is not None
            self._average.add(own.moments)
        lr = share * float(self.config.image_lr)
        self._images.end(lr=lr)
        return Batch(
            images=kept,
            labels=attempt.labels.cpu(),
            predictions=seen.predictions,
            confidences=seen.confidences,
            r_feature=shown.r_feature,
            r_feature_chance=shown.r_feature_chance,
            lr=lr,
            terms=attempt.terms,
        )

    def _optimised(self, attempt: Attempt, *, share: float) -> tuple[Tensor, Tensor]:
        """The images as they were made, and what refining made of them; the same without it.

        Returns: as of `_advance`.
        """
        self._images.begin(len(attempt.labels), attempt.generator)
        made = self._advance(attempt, self._images, Course.of(self.config, share=share))
        if self._refined is None:
            return made, made
        self._refined.take(made)
        course = Course.refining(self.config, share=share)
        return made, self._advance(attempt, self._refined, course)

    def _advance(self, attempt: Attempt, images: Images, course: Course) -> Tensor:
        """Take a course to its end.

        Returns: the images, normalised, (B, C, H, W), detached.
        Raises: DivergedError.
        """
        labels = attempt.labels
        for factor, steps in course.stages:
            # It is of full resolution.
            average = self._average.former(counts=course.averaged and factor == 1)
            optimizer = course.optimizer(images)
            for step in range(steps):
                course.set_rate(optimizer, step, steps)
                view = self._view(factor, attempt)
                with self.runtime.autocast():
                    x = images.inputs()
                loss = self._objective(
                    x,
                    labels,
                    view,
                    factor=factor,
                    compete=attempt.compete,
                    average=average,
                    r_feature=course.r_feature,
                )
                if attempt.best is not None and factor == 1:
                    attempt.best.offer(x.detach(), loss.scores)
                optimizer.zero_grad()
                torch.autograd.backward(x, loss.gradient)
                images.learn()
                optimizer.step()
                images.project()
                attempt.done += 1
                if attempt.done % LOOK == 0 or attempt.done == attempt.total:
                    values = loss.terms.tolist()  # host sync
                    names = self._objective.term_names(compete=attempt.compete)
                    attempt.terms = dict(zip(names, values, strict=True))
                    check_finite(attempt.terms, where=f"image {attempt.place}")
                if attempt.told is not None:
                    attempt.told(attempt.done, attempt.total, attempt.terms)
        with torch.no_grad(), self.runtime.autocast():
            x = images.inputs().detach()
        if not bool(x.isfinite().all()):  # host sync
            raise diverged("pixels became NaN or infinite", where=attempt.place)
        if attempt.best is not None:
            # What the last step made has not been looked at yet.
            view, compete = self._view(1, attempt), attempt.compete
            former = self._average.former(counts=course.averaged)
            scores = self._objective(x, labels, view, compete=compete, average=former).scores
            attempt.best.offer(x, scores)
        return x

    @contextmanager
    def rehearsal(self, config: InvertConfig | DistillConfig) -> Iterator[None]:
        """Batches within the block are forgotten after it, but for what they compiled.

        Args: config: the settings, with the numbers of steps that these batches take.
        """
        whole, self.config = self.config, config
        try:
            yield
        finally:
            self.config = whole
            self.restore({})

    def state(self) -> dict[str, Tensor]:
        """What is carried to the next batch; empty if nothing is."""
        tensors = {f"images.{name}": value for name, value in self._images.state().items()}
        average = self._average.state()
        return tensors | {f"average.{name}": value for name, value in average.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave; from the beginning if it is empty."""
        self._images.restore(under("images.", state))
        self._average.restore(under("average.", state), device=self.runtime.device)

    def _parameterised(self, kind: type[Kind], **settings: Any) -> Kind:
        """Images of the teacher's size and normalisation."""
        card, device = self.teacher.card, self.runtime.device
        return kind(card.input_size, mean=card.mean, std=card.std, device=device, **settings)

    def _view(self, factor: int, attempt: Attempt) -> View:
        """Draw how the network sees each image."""
        config, done = self.config, attempt.done / attempt.total
        end = float(config.crop)
        view = draw_view(
            len(attempt.labels),
            shift=round(int(config.jitter) / factor),
            flip=config.flip == "on",
            # A crop of all at first: the same graph as those that follow.
            smallest=smallest_crop(done, end=end) if end < 1 else None,
            generator=attempt.generator,
        )
        return view.to(self.runtime.device)

    def _rounded(self, x: Tensor) -> Tensor:
        """Images as they will be stored, uint8 on the CPU."""
        card = self.teacher.card
        return to_uint8(x.contiguous(), mean=card.mean, std=card.std).cpu()
