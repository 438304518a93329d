"""The loss of a batch of images under one teacher, and its gradient at the images.

This is the inner step: everything that happens between the images and their gradient, in one
compiled graph. Which images are optimised, and how, is `synthesis`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamkd import losses
from dreamkd.augment import View, see
from dreamkd.batchnorm import stored, watch
from dreamkd.config import DistillConfig, InvertConfig
from dreamkd.engine import (
    Runtime,
    chunks,
    compile_step,
    fixed,
    lay_out,
    normalise,
    on_device,
    renormalise,
)
from dreamkd.events import OnEvent, ignore
from dreamkd.models import Classifier
from dreamkd.moments import Average, Moments, Stored, blend, in_place_of, of_batch
from dreamkd.networks import Networks
from dreamkd.resampling import Resampling, resample, resampling

#: (images, labels, view, count, whole, average, alpha_f) -> scalar to differentiate, terms, scores.
Step = Callable[..., tuple[Tensor, Tensor, Tensor]]


class Loss(NamedTuple):
    """The loss of a batch at one view."""

    terms: Tensor  # (terms,): weighted, in the order of `term_names`
    scores: Tensor  # (B,): what each image has of the loss for itself, R_feature left out
    gradient: Tensor  # (B, C, H, W): of the sum of the terms


class Objective:
    """Eq. 2, 7 or 9 of Yin et al. 2020 for one frozen teacher and those beside it.

    with Objective(networks, config, runtime=runtime) as objective:
        loss = objective(x, labels, view)
    """

    def __init__(
        self,
        networks: Networks,
        config: InvertConfig | DistillConfig,
        *,
        runtime: Runtime,
        statistics: bool = True,
        compiled: bool = False,
        on_event: OnEvent = ignore,
    ) -> None:
        """Prepare; nothing on the models is touched before `with`.

        Args:
            config: settled (no `auto` left) for the teacher's input size.
            statistics: whether R_feature is part of the loss (not so in DeepDream).
        """
        self.networks = networks
        self.config = config
        self._border = config.border()
        # Whose weight is 0 costs nothing, as with the priors.
        self._has_rival = networks.rival is not None and float(config.competition) > 0
        self.runtime = runtime
        self.statistics = statistics
        self._compiled = compiled
        self._on_event = on_event
        self._losses: dict[tuple[int, bool], Callable[..., Loss]] = {}
        self._stored: dict[int, Stored] = {}  # by how much the images are shrunk
        self._to_prior: dict[tuple[int, int], Resampling | None] = {}  # from the size seen

    def __enter__(self) -> Self:
        device, card = self.runtime.device, self.networks.teacher.card
        teacher, prior, rival = self.networks.teacher, self.networks.prior, self.networks.rival
        with ExitStack() as stack:
            # Copies carry the hooks: others who run the networks meanwhile do not pay for them.
            self._model = self._watched_model = self._fixed(teacher)
            if rival is not None:
                stack.enter_context(on_device(rival.module, device))
                stack.callback(lay_out(rival.module, rival.card.input_size))
            if prior is not None:
                self._watched_model = self._fixed(prior)
            if self.statistics:  # else nobody would take what the hooks collect
                self._watched = stack.enter_context(watch(self._watched_model))
            black = torch.zeros(card.input_size[0], 1, 1, device=device)
            self._black = normalise(black, mean=card.mean, std=card.std)
            stack.enter_context(self.runtime.active())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._losses.clear()

    def _fixed(self, network: Classifier) -> nn.Module:
        size = network.card.input_size
        return fixed(network.module, runtime=self.runtime, input_size=size)

    def term_names(self, *, compete: bool = True) -> list[str]:
        """The terms of the loss: first those that each image has for itself, then R_feature."""
        names = ["ce", *(name for name in losses.PRIORS if getattr(self.config, name))]
        names += ["competition"] if compete and self._has_rival else []
        return names + (["r_feature"] if self.statistics else [])

    def __call__(
        self,
        x: Tensor,
        labels: Tensor,
        view: View,
        *,
        factor: int = 1,
        compete: bool = True,
        average: Average | None = None,
        r_feature: float | str | None = None,
    ) -> Loss:
        """Loss and gradient of images as `view` shows them.

        A batch above `--image-chunk` is cut: one pass without gradients gives the statistics of the
        whole, then every chunk is differentiated with them in place.

        Args:
            x: (B, C, H, W) normalised for the teacher.
            labels: int64 (B,).
            view: drawn for images of (H / factor, W / factor).
            factor: the network sees the images averaged over factor x factor pixels.
            average: statistics of former batches, blended with those of this one.
            compete: whether the rival takes part, if there is one and it has a weight.
            r_feature: its weight alpha_f, if it is not that of the settings.
        Returns: detached tensors, on the device of `x`; the next call may overwrite them.
        """
        key = factor, compete and self._has_rival
        if key not in self._losses:
            self._prepare(*key)
        alpha_f = self._scalar(self.config.r_feature if r_feature is None else r_feature)
        if average is not None:
            average = average._replace(momentum=self._scalar(average.momentum))
        return self._losses[key](x.detach(), labels, view, average, alpha_f)

    def _evaluate(
        self,
        step: Step,
        factor: int,
        x: Tensor,
        labels: Tensor,
        view: View,
        average: Average | None,
        alpha_f: Tensor,
    ) -> Loss:
        """The loss of a batch, chunk by chunk."""
        count = len(x)
        parts = chunks(count, int(self.config.image_chunk))
        whole = self._whole(x, view, parts, factor) if len(parts) > 1 and self.statistics else None
        gradients: list[Tensor] = []
        terms, scores = torch.zeros((), device=x.device), []
        for part in parts:
            leaf = x[part].requires_grad_()
            with self.runtime.autocast():
                loss, own, own_scores = step(
                    leaf, labels[part], view.part(part), count, whole, average, alpha_f
                )
            scaled = loss * self.runtime.loss_scale
            gradients += torch.autograd.grad(scaled, leaf)
            scores.append(own_scores)
            terms = terms + own
        if self.statistics:
            terms[-1] /= len(parts)  # R_feature of the whole batch, as every chunk says
        gradient = torch.cat(gradients) if len(parts) > 1 else gradients[0]
        if self.runtime.loss_scale != 1:
            gradient /= self.runtime.loss_scale
        return Loss(terms, torch.cat(scores), gradient)

    def _scalar(self, value: float | str | Tensor) -> Tensor:
        """As a tensor, so that one graph serves every value; 0 where there are no statistics."""
        return torch.full((), float(value) if self.statistics else 0.0, device=self.runtime.device)

    def _prepare(self, factor: int, compete: bool) -> None:
        """Set up the loss at one resolution: compiled, and on CUDA recorded, by itself."""
        networks, device = self.networks, self.runtime.device
        channels, height, width = networks.teacher.card.input_size
        size = channels, height // factor, width // factor
        if networks.prior is not None:
            seen, size = size[1:], networks.prior.card.input_size
            weights = resampling(seen, size[1:], device=device)
            self._to_prior[seen] = weights if seen != size[1:] else None
        if self.statistics:
            with self.runtime.autocast():
                name = networks.matched.card.architecture
                self._stored[factor] = stored(self._watched_model, size, name=name)
        step: Step = partial(self._terms, factor, compete)
        if self._compiled:
            step = compile_step(step, on_event=self._on_event)
        evaluate = partial(self._evaluate, step, factor)
        self._losses[factor, compete] = self.runtime.replayed(evaluate, on_event=self._on_event)

    @torch.no_grad()
    def _whole(self, x: Tensor, view: View, parts: Sequence[slice], factor: int) -> Moments:
        """The moments of the whole batch, chunk by chunk."""
        found = []
        for part in parts:
            self._watched.begin()
            with self.runtime.autocast():
                inputs = self._seen(x[part], view.part(part), factor)
                if self.networks.prior is None:
                    self._model(inputs)
                else:
                    self._run_prior(inputs, self.networks.prior)
            found.append(of_batch(self._watched.take()))
        return blend(found, [(part.stop - part.start) / len(x) for part in parts])

    def _terms(
        self,
        factor: int,
        compete: bool,
        x: Tensor,
        labels: Tensor,
        view: View,
        count: int,
        whole: Moments | None,
        average: Average | None,
        alpha_f: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a chunk of a batch of `count`: compiled with the network.

        Returns: the scalar to differentiate; the weighted terms; each image's own part, (B,).
        """
        config, networks = self.config, self.networks
        if self.statistics:
            self._watched.begin()
        inputs = self._seen(x, view, factor)
        logits = self._model(inputs)
        own = [float(config.ce) * losses.classification(logits, labels)]
        # Priors are of the image, not of the view: shifting in a circle would add a seam.
        small = _shrink(x, factor)
        own += [
            float(weight) * penalty(small)
            for name, penalty in losses.PRIORS.items()
            if (weight := getattr(config, name))
        ]
        if compete:
            assert networks.rival is not None
            student = networks.rival
            theirs = student.module(renormalise(inputs, networks.teacher.card, student.card))
            compare = losses.COMPETITION[config.competition_loss]
            temperature = float(config.competition_temperature)
            disagreement = compare(logits, theirs, temperature=temperature)
            own.append(float(config.competition) * disagreement)
        per_image = torch.stack(own)  # (own terms, B)
        terms = per_image.sum(1) / count
        if self.statistics:
            if networks.prior is not None:
                self._run_prior(inputs, networks.prior)
            moments = of_batch(self._watched.take())
            if whole is not None:
                moments = in_place_of(whole, moments, share=len(x) / count)
            if average is not None:
                moments = average.including(moments)
            r = losses.r_feature(moments, self._stored[factor], first_scale=float(config.first_bn))
            terms = torch.cat([terms, alpha_f * r[None]])
        return terms.sum(), terms.detach(), per_image.detach().sum(0)

    def _seen(self, x: Tensor, view: View, factor: int) -> Tensor:
        """What the network sees of images (B, C, H, W)."""
        seen = see(_shrink(x, factor), view, border=self._border, black=self._black)
        return seen.contiguous(memory_format=torch.channels_last)

    def _run_prior(self, inputs: Tensor, prior: Classifier) -> None:
        """Run the network whose statistics are matched; the hooks take what is wanted."""
        theirs = renormalise(inputs, self.networks.teacher.card, prior.card)
        weights = self._to_prior[inputs.shape[2], inputs.shape[3]]
        self._watched_model(theirs if weights is None else resample(theirs, weights))


def _shrink(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.avg_pool2d(x, factor)
