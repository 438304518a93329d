"""The student's loop: distillation on uint8 images, resumable at any step.

Every draw of a step is a function of (seed, step), so that the state is the weights, their average,
the optimiser's moments and the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor

from dreamkd import losses
from dreamkd.batchnorm import recalibrate, running_statistics
from dreamkd.config import DistillConfig
from dreamkd.copying import copied, give
from dreamkd.distributed import ALONE, Workers
from dreamkd.engine import (
    LOOK,
    Runtime,
    WeightAverage,
    check_finite,
    compile_step,
    diverged,
    fixed,
    lay_out,
    normalise,
    optimizer,
    rate,
)
from dreamkd.events import OnEvent, ignore
from dreamkd.examples import Examples
from dreamkd.losses import SparseOutputs
from dreamkd.models import Classifier
from dreamkd.randomness import generator_for, seed_global
from dreamkd.states import moments, restore_moments, under
from dreamkd.views import ALL, view


class Training:
    """One student on the distillation loss (Yin et al. 2020, Eq. 1).

    Several workers train it together, each on its part of every batch: gradients are averaged, and
    so are the running statistics, each of its part. After a step all hold the same student.
    """

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        config: DistillConfig,
        *,
        runtime: Runtime,
        record: Callable[[int, SparseOutputs], None] | None = None,
        stored: Callable[[int], SparseOutputs] | None = None,
        workers: Workers = ALONE,
        on_event: OnEvent = ignore,
    ) -> None:
        """Move the student to the runtime's device, where it learns in place and stays.

        Args:
            student: of the teacher's classes, channels and input size.
            teacher: a fixed copy of it runs; it is left alone.
            config: settled (no `auto` left).
            record: told of every step and `--store-labels` of the teacher's outputs.
            stored: the teacher's outputs of a step, which then does not run.
            workers: of equal parts of a batch; the same calls in all of them.
        """
        self._record, self._stored = record, stored
        self._recording = record is not None
        self._workers, self._part = workers, workers.part(int(config.batch_size))
        self.student, self.teacher = student, teacher
        self.config = config
        self.runtime = runtime
        self.step = 0
        self.seconds = 0.0  # of training, over all processes
        self._on_event = on_event
        self._stack = ExitStack()
        self._module = student.module.to(runtime.device)
        self._stack.callback(lay_out(self._module, student.card.input_size))
        self._start = {k: v.clone() for k, v in self._module.state_dict().items()}
        self._running = running_statistics(self._module)
        self._optimizer = optimizer(self._module, config)
        decay = float(config.ema)
        self._average = WeightAverage(self._module, decay) if decay else None

    def __enter__(self) -> Self:
        if self._stored is None:
            module, size = self.teacher.module, self.teacher.card.input_size
            self._fixed_teacher = fixed(module, runtime=self.runtime, input_size=size)
        self._stack.enter_context(self.runtime.active())
        # Networks with dropout draw from the global stream: seeded per step, put back at the end.
        self._stack.enter_context(torch.random.fork_rng(devices=self._cuda()))
        self._loss: Callable[..., tuple[dict[str, Tensor], Tensor | None]] = self._distillation
        if self.config.compile == "on":
            self._loss = compile_step(self._distillation, on_event=self._on_event)
        self._gradients = self.runtime.replayed(self._differentiate, on_event=self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        del self._gradients  # and the memory of its recordings, with the gradients in it
        self._optimizer.zero_grad()
        self._module.eval()

    def advance(
        self,
        examples: Examples,
        *,
        until: int,
        on_step: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        """Train from the current step to `until` on uniform samples of `examples`.

        Args:
            on_step: called after every step with its number and the newest weighted terms; may
                raise to stop, the state is that of the step it was told.
        Raises: DivergedError: the loss became NaN or infinite.
        """
        config = self.config
        self._module.train()
        terms: dict[str, float] = {}
        began = time.perf_counter()
        for step in range(self.step, until):
            seed_global(self._dropout_seed(step), device=self.runtime.device)
            lr = float(config.lr) * rate(step, int(config.steps), warmup=int(config.warmup))
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            views, targets = self._view(examples, step, self._part)
            loss, log_probs, gradients = self._gradients(views, targets, self._stored_rows(step))
            self._workers.average([*loss.values(), *_present(gradients), *self._running])
            if self._record is not None and log_probs is not None:
                log_probs = self._workers.gather(log_probs)
                draws = generator_for(config.seed, "stored labels", step)
                self._record(step, losses.sparse(log_probs, config.store_labels, generator=draws))
            for parameter, gradient in zip(self._module.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self.step = step + 1
            if self._average is not None:
                self._average.move(step=step)
            if self.step % LOOK == 0 or self.step == until:
                self._workers.any(False)  # for one that is gone a device would wait for ever
                terms = {name: float(term) for name, term in loss.items()}  # host sync
                check_finite(terms, where=f"student step {self.step} of {config.steps}")
            self.seconds += time.perf_counter() - began
            if on_step is not None:
                on_step(self.step, terms)
            began = time.perf_counter()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, their average, the optimiser's moments and the step, for `Run.save_state`.

        Raises: DivergedError: a weight is NaN or infinite; the state saved before stays.
        """
        tensors = {f"student.{k}": v for k, v in self._module.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{k}": v for k, v in self._average.module.state_dict().items()}
        tensors |= moments(self._optimizer, self._module)
        device = self.runtime.device  # an optimiser may count its steps on the CPU
        finite = [t.isfinite().all().to(device) for t in tensors.values()]
        if not torch.stack(finite).all():  # host sync
            what, steps = "a weight of the student became NaN or infinite", self.config.steps
            raise diverged(what, where=f"student step {self.step} of {steps}")
        return tensors, {"step": self.step, "seconds": self.seconds}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        give(self._module, under("student.", tensors))
        if self._average is not None:
            give(self._average.module, under("average.", tensors))
        restore_moments(self._optimizer, self._module, tensors)
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])

    def restart(self) -> None:
        """Back to step 0: the weights that the student came with, no moments."""
        for each in (self._module, *([self._average.module] if self._average else [])):
            give(each, self._start)
        self._optimizer.state.clear()
        self.step, self.seconds = 0, 0.0

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Steps within the block are forgotten after it, but for what they compiled."""
        record, self._record = self._record, None
        try:
            yield
        finally:
            self._record = record
            self.restart()

    def result(
        self,
        examples: Examples,
        *,
        batches: int | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> Classifier:
        """The student to keep: the average with `ema`, its statistics anew with `bn_recalibration`.

        Args:
            examples: the bank.
            batches: that statistics are taken of, if not as many as `bn_recalibration`.
            on_batch: told before each of them; may raise.
        """
        module = self._average.module if self._average is not None else self._module
        count = self.config.bn_recalibration if batches is None else batches
        if count:
            module = copied(module)
            card, steps = self.student.card, int(self.config.steps)

            def inputs() -> Iterator[Tensor]:
                for k in range(count):
                    on_batch(k)
                    views, _ = self._view(examples, steps + k)
                    yield normalise(views, mean=card.mean, std=card.std)

            with self.runtime.autocast():
                recalibrate(module, inputs())
        return Classifier(module, self.student.card)

    def _view(
        self, examples: Examples, step: int, part: slice = ALL
    ) -> tuple[Tensor, Tensor | None]:
        """What student and teacher see in a step, and with hard labels the targets."""
        classes, device = self.teacher.card.num_classes, self.runtime.device
        return view(self.config, examples, step=step, classes=classes, device=device, part=part)

    def _stored_rows(self, step: int) -> SparseOutputs | None:
        """The teacher's outputs for this worker's part, where they are stored."""
        if self._stored is None:
            return None
        return SparseOutputs(*(rows[self._part] for rows in self._stored(step)))

    def _dropout_seed(self, step: int) -> int:
        """Of all that a step draws from the global stream: every worker masks its own images."""
        rank = self._workers.rank
        beside = ("worker", rank) if rank else ()
        return generator_for(self.config.seed, "dropout", step, *beside).initial_seed()

    def _differentiate(
        self, views: Tensor, targets: Tensor | None, stored: SparseOutputs | None
    ) -> tuple[dict[str, Tensor], Tensor | None, list[Tensor | None]]:
        """The loss of a batch, the teacher's outputs if recorded, the gradient of every weight."""
        self._optimizer.zero_grad()
        with self.runtime.autocast():
            terms, log_probs = self._loss(views, targets, stored)
        loss = reduce(torch.add, terms.values())
        torch.autograd.backward(loss * self.runtime.loss_scale)
        gradients = [p.grad for p in self._module.parameters()]
        if self.runtime.loss_scale != 1:
            torch._foreach_div_(_present(gradients), self.runtime.loss_scale)
        return {name: term.detach() for name, term in terms.items()}, log_probs, gradients

    def _distillation(
        self, views: Tensor, targets: Tensor | None, stored: SparseOutputs | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Eq. 1 on one batch of uint8 views (B, C, H, W): compiled with both networks.

        Returns: the terms of the loss; where recorded, the teacher's log softmax(z / tau).
        """
        config, log_probs = self.config, None
        temperature = float(config.temperature)
        inputs = normalise(views, mean=self.student.card.mean, std=self.student.card.std)
        logits = self._module(inputs.contiguous(memory_format=torch.channels_last))
        if stored is None:
            theirs = self._teacher_logits(views, inputs)
            kd = losses.distillation(theirs, logits, temperature=temperature)
            if self._recording:
                log_probs = losses.softened(theirs, temperature)
        else:
            kd = losses.distillation_from_sparse(stored, logits, temperature=temperature)
        if targets is None:
            return {"kd": kd}, log_probs
        hard = losses.hard_labels(logits, targets, smoothing=config.label_smoothing)
        return {"kd": kd, "hard_labels": config.hard_labels * hard}, log_probs

    @torch.no_grad()
    def _teacher_logits(self, views: Tensor, inputs: Tensor) -> Tensor:
        """The teacher's logits; `inputs` are the views as the student sees them."""
        ours, theirs = self.student.card, self.teacher.card
        if (ours.mean, ours.std) != (theirs.mean, theirs.std):
            inputs = normalise(views, mean=theirs.mean, std=theirs.std)
        logits: Tensor = self._fixed_teacher(inputs.contiguous(memory_format=torch.channels_last))
        return logits

    def _cuda(self) -> list[torch.device]:
        device = torch.device(self.runtime.device)
        return [device] if device.type == "cuda" else []


def _present(gradients: Iterable[Tensor | None]) -> list[Tensor]:
    """Those of the weights that the loss depends on."""
    return [gradient for gradient in gradients if gradient is not None]
