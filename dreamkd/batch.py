"""A synthesised batch: on its way, its best versions, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

#: Told of every step: its number, steps in all, the newest weighted terms. May raise to stop.
OnStep = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Batch:
    """Synthesised images and what networks make of them, after rounding to uint8."""

    images: Tensor  # uint8 (B, C, H, W), CPU
    labels: Tensor  # int64 (B,)
    predictions: Tensor  # int64 (B,): the teacher's top-1
    confidences: Tensor  # float32 (B,): the teacher's probability of the label
    r_feature: float  # of the kept images, unweighted; 0 without batch norm
    r_feature_chance: float  # what as many and as varied images show by chance
    lr: float  # peak rate: that of the settings, halved at every restart
    terms: dict[str, float]  # weighted terms of the last step
    verifiers: Mapping[str, Tensor] = field(default_factory=dict)  # int64 (B,): top-1, by name

    def records(self, *, start: int, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """One per image: key, class, the teacher's view of it, the verifiers' top-1.

        Args: start: number of the first image in the run; images are keyed by it.
        """
        return [
            {
                "key": f"{start + i:08d}",
                "class_name": class_names[label] if class_names else str(label),
                "teacher_top1": int(self.predictions[i]),
                "teacher_probability": round(float(self.confidences[i]), 6),
                "verifiers": {name: int(top1[i]) for name, top1 in self.verifiers.items()},
            }
            for i, label in enumerate(self.labels.tolist())
        ]

    def summary(self) -> dict[str, Any]:
        """The batch's line in the manifest: terms, R_feature, percent classified as asked."""

        def percent(top1: Tensor) -> float:
            return round(100 * float((top1 == self.labels).float().mean()), 4)

        return {
            "lr": self.lr,
            "terms": {name: round(value, 6) for name, value in self.terms.items()},
            "r_feature": round(self.r_feature, 4),
            "r_feature_chance": round(self.r_feature_chance, 4),
            "teacher_top1": percent(self.predictions),
            "verifiers": {name: percent(top1) for name, top1 in self.verifiers.items()},
        }


class Best:
    """The best version of each image so far, by what it has of the loss for itself."""

    images: Tensor

    def __init__(self) -> None:
        self._scores: Tensor | None = None

    def offer(self, images: Tensor, scores: Tensor) -> None:
        """Keep those of `images` (B, C, H, W) whose `scores` (B,) are lower than before."""
        if self._scores is None:
            self.images, self._scores = images.clone(), scores.clone()
            return
        better = scores < self._scores
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self._scores = torch.where(better, scores, self._scores)


@dataclass
class Attempt:
    """A batch on its way."""

    labels: Tensor  # int64 (B,), on the device
    generator: Generator
    compete: bool
    name: str  # in messages
    total: int  # steps in all
    told: OnStep | None
    best: Best | None
    done: int = 0
    terms: dict[str, float] = field(default_factory=dict)  # newest seen

    @property
    def place(self) -> str:
        """Where it has come to, for messages."""
        return f"step {self.done} of {self.total} of {self.name}"
