"""Running classification metrics: accuracy, cross-entropy, counts per class, agreement.

Totals stay on the device of the logits, so that adding a batch never waits for it; reading a result
does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dreamkd.engine import normalise, on_device
from dreamkd.models import Classifier


def top_k_hits(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Whether the target is among the k largest logits.

    Args:
        logits: (B, C), k <= C.
        targets: (B,) class indices.
        k: how many guesses count.
    Returns: bool (B,).
    """
    return (logits.topk(k).indices == targets[:, None]).any(1)


class Accuracy:
    """Top-1, top-5 and mean cross-entropy over all images added, and counts per class."""

    def __init__(self, num_classes: int, *, device: torch.device | str = "cpu") -> None:
        self.top5_guesses = min(5, num_classes)
        self._counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._hits = torch.zeros_like(self._counts)
        self._top5_hits = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits (B, C) of any float type, targets (B,) in 0..C-1."""
        logits = logits.float()
        ones = torch.ones_like(targets)
        self._counts.index_add_(0, targets, ones)
        self._hits.index_add_(0, targets, ones * (logits.argmax(1) == targets))
        self._top5_hits += top_k_hits(logits, targets, self.top5_guesses).sum()
        self._loss += cross_entropy(logits, targets, reduction="sum")

    @property
    def count(self) -> int:
        """Images added (host sync)."""
        return int(self._counts.sum())

    @property
    def top1(self) -> float:
        """Images whose largest logit is the target's, in percent (host sync)."""
        return 100 * int(self._hits.sum()) / self.count

    @property
    def top5(self) -> float:
        """Images whose target is among the min(5, C) largest logits, in percent (host sync)."""
        return 100 * int(self._top5_hits) / self.count

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats (host sync)."""
        return float(self._loss) / self.count

    def per_class(self) -> list[tuple[int, int]]:
        """(images, images whose largest logit is right) of every class (host sync)."""
        return list(zip(self._counts.tolist(), self._hits.tolist(), strict=True))


#: Images measured at once: no more, since a large network in float32 needs much for each.
_CHUNK = 64


class Agreement:
    """Share of images on which two networks have the same largest logit."""

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self._same = torch.zeros((), dtype=torch.int64, device=device)
        self._count = 0

    def add(self, logits: Tensor, others: Tensor) -> None:
        """Add a batch: two times (B, C)."""
        self._same += (logits.argmax(1) == others.argmax(1)).sum()
        self._count += len(logits)

    @property
    def percent(self) -> float:
        """Agreement over all images added, in percent (host sync)."""
        return 100 * int(self._same) / self._count


@dataclass(frozen=True)
class Measurement:
    """Percent right, of a teacher too, and percent on which both say the same."""

    top1: float
    teacher_top1: float | None  # None without one
    agreement: float | None


def measure(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    teacher: Classifier | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Measurement:
    """Accuracy in float32 on images in memory.

    Args:
        images: uint8 (N, C, H, W), as both networks take them.
        labels: int64 (N,).
        on_batch: called before every chunk of images; may raise to stop.
    """
    device = next(classifier.module.parameters()).device
    networks = [classifier] if teacher is None else [classifier, teacher]
    accuracies = [Accuracy(network.card.num_classes, device=device) for network in networks]
    agreement = Agreement(device=device)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(on_device(network.module, device))
        # Within: weights that are moved in inference mode can never be trained again.
        stack.enter_context(torch.inference_mode())
        for start in range(0, len(images), _CHUNK):
            on_batch()
            part = slice(start, start + _CHUNK)
            logits = [_logits(network, images[part].to(device)) for network in networks]
            for accuracy, given in zip(accuracies, logits, strict=True):
                accuracy.add(given, labels[part].to(device))
            agreement.add(logits[0], logits[-1])
    top1 = [accuracy.top1 for accuracy in accuracies]
    return Measurement(top1[0], *((top1[1], agreement.percent) if teacher else (None, None)))


def _logits(network: Classifier, images: Tensor) -> Tensor:
    card = network.card
    logits: Tensor = network.module(normalise(images, mean=card.mean, std=card.std))
    return logits
