"""How unlike images of one class are, in the features of a network that had no part in them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamkd.engine import normalise, on_device
from dreamkd.errors import ModelError
from dreamkd.models import Classifier


@torch.inference_mode()
def features(classifier: Classifier, images: Tensor) -> Tensor:
    """What the last linear layer of a network is given, float32 (N, F), on the CPU.

    Args: images: uint8 (N, C, H, W), as the network takes them.
    Raises: ModelError: the network runs no linear layer.
    """
    found: list[Tensor] = []
    device = next(classifier.module.parameters()).device

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0])

    linear = [m for m in classifier.module.modules() if isinstance(m, nn.Linear)]
    handles = [module.register_forward_pre_hook(record) for module in linear]
    rows = []
    try:
        with on_device(classifier.module, device):
            for chunk in torch.split(images, 256):
                found.clear()
                logits_of(classifier, chunk.to(device))
                if not found:
                    raise ModelError(f"{classifier.card.architecture} runs no linear layer")
                rows.append(found[-1].flatten(1).float().cpu())
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(rows)


def intra_class_similarity(rows: Tensor, labels: Tensor) -> float:
    """How alike images of one class are: the mean cosine similarity of pairs, over all classes.

    Args:
        rows: features (N, F).
        labels: int64 (N,); classes of a single image are left out.
    Returns: within [-1, 1]; lower is more diverse. NaN where no class has two images.
    """
    unit = F.normalize(rows, dim=1)
    values = []
    for label in torch.unique(labels):
        own = unit[labels == label]
        n = len(own)
        if n > 1:
            # The norm of the sum squared holds every ordered pair, and n times 1 for itself.
            values.append((own.sum(0).square().sum() - n) / (n * (n - 1)))
    return float(torch.stack(values).mean()) if values else math.nan


@torch.inference_mode()
def recognised(judge: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether `judge` sees in each of the uint8 images (N, C, H, W) what its label says; (N,)."""
    logits = [logits_of(judge, part) for part in images.split(500)]
    return torch.cat(logits).argmax(1) == labels


def logits_of(network: Classifier, images: Tensor) -> Tensor:
    """Logits (N, classes) of uint8 images (N, C, H, W), as the network takes them."""
    logits: Tensor = network.module(normalise(images, mean=network.card.mean, std=network.card.std))
    return logits
