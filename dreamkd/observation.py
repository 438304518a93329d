"""What a teacher makes of finished images: measured on what is stored, after rounding to 8 bits."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dreamkd.augment import View, see
from dreamkd.batchnorm import defect, layers, stored, watch
from dreamkd.copying import twin
from dreamkd.engine import normalise
from dreamkd.errors import NoBatchNormError
from dreamkd.models import Classifier
from dreamkd.moments import Moments, Stored, distances, of_images, sampling_level
from dreamkd.resampling import resample, resampling

#: Images in one forward pass, which is in float32, at most.
_CHUNK = 64


@dataclass(frozen=True)
class Observation:
    """Of a batch of images (B, C, H, W)."""

    predictions: Tensor  # int64 (B,): the teacher's top-1, CPU
    confidences: Tensor  # float32 (B,): the teacher's probability of the label, CPU
    moments: Moments | None  # of the batch, on the device; None without batch norm
    distances: Tensor  # (L,): the terms of R_feature, unweighted, CPU; empty without batch norm
    r_feature: float  # of the batch, unweighted; 0 without batch norm
    r_feature_chance: float  # what as many and as varied images show by chance


class Observer:
    """Looks at finished images through the plain network, in float32.

    with Observer(teacher, device="cpu") as observe:
        seen = observe(images, labels)
    """

    def __init__(
        self,
        teacher: Classifier,
        *,
        prior: Classifier | None = None,
        border: str = "wrap",
        chunk: int = _CHUNK,
        device: str,
    ) -> None:
        """Prepare.

        Args:
            prior: the network whose statistics are matched, if not the teacher.
            border: of the views that images are looked at through.
            chunk: images that fit in a pass, at least.
        """
        self._teacher = teacher
        self._prior = prior
        self._border = border
        self._chunk = min(chunk, _CHUNK)
        self._device = device
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        networks = [self._teacher] if self._prior is None else [self._teacher, self._prior]
        modules = [
            twin(network.module).requires_grad_(False).to(self._device) for network in networks
        ]
        self._module, self._watched_module = modules[0], modules[-1]
        self._stored: Stored | None = None
        card = networks[-1].card
        with suppress(NoBatchNormError):
            if not any(map(defect, layers(self._watched_module))):  # else no number comes of it
                self._stored = stored(self._watched_module, card.input_size, name=card.architecture)
        self._watched = self._stack.enter_context(watch(self._watched_module))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        del self._module, self._watched_module, self._watched  # and their memory on the device

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor, *, view: View | None = None) -> Observation:
        """Look at `images`, uint8 (B, C, H, W), asked to show `labels`, int64 (B,).

        Args: view: through which, on the device; None for the images as they are.
        """
        logits, found = [], []
        black = torch.zeros(images.shape[1], 1, 1, device=self._device)
        for start in range(0, len(images), self._chunk):
            part = slice(start, start + self._chunk)
            chunk = images[part].to(self._device)
            if view is not None:
                chunk = see(chunk / 255, view.part(part), border=self._border, black=black)
            self._watched.begin()
            logits.append(self._logits(self._module, self._teacher, chunk))
            if self._prior is not None:
                self._logits(self._watched_module, self._prior, chunk)
            if self._stored is not None:
                found.append(of_images(self._watched.take(), count=len(chunk)))
        moments, terms, r_feature, chance = None, torch.zeros(0), 0.0, 0.0
        if self._stored is not None:
            per_image = Moments(*(torch.cat(parts) for parts in zip(*found, strict=True)))
            moments = Moments(*(values.mean(0) for values in per_image))
            terms = distances(moments, self._stored).cpu()
            r_feature = float(terms.sum())
            # All that a single image shows may be chance.
            chance = sampling_level(per_image, self._stored) if len(labels) > 1 else r_feature
        probabilities = torch.cat(logits).float().softmax(1).cpu()
        return Observation(
            predictions=probabilities.argmax(1),
            confidences=probabilities.gather(1, labels.cpu()[:, None])[:, 0],
            moments=moments,
            distances=terms,
            r_feature=r_feature,
            r_feature_chance=chance,
        )

    def _logits(self, module: torch.nn.Module, network: Classifier, images: Tensor) -> Tensor:
        """Logits of a network for images of the teacher's size."""
        card = network.card
        inputs = normalise(images, mean=card.mean, std=card.std)
        if inputs.shape[2:] != card.input_size[1:]:
            size = (inputs.shape[2], inputs.shape[3])
            inputs = resample(inputs, resampling(size, card.input_size[1:], device=self._device))
        logits: Tensor = module(inputs)
        return logits
