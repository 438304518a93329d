"""Independent networks that say whether a synthesised image shows its class."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkd import models
from dreamkd.engine import normalise, on_device
from dreamkd.events import Note, OnEvent
from dreamkd.models import Classifier

#: Names that mean another network beside them.
_TAKEN = ("teacher",)

#: Images that are judged at once, however many are made.
_CHUNK = 64


def _name(spec: str, others: Container[str]) -> str:
    """What a network is called: a file by its name without folder and ending, wherever it lies."""
    stem = Path(spec).stem if models.is_file(spec) else spec
    names = (f"{stem}-{number}" if number > 1 else stem for number in itertools.count(1))
    return next(name for name in names if name not in others)


class Verifiers:
    """Networks of the teacher's classes, by name."""

    def __init__(self, networks: dict[str, Classifier]) -> None:
        self._networks = networks
        self._device = "cpu"

    @classmethod
    def load(
        cls,
        specs: Sequence[str],
        *,
        teacher: Classifier,
        own: Sequence[Classifier | None] = (),
        trust_pickle: bool,
        on_event: OnEvent,
    ) -> Verifiers:
        """Load every verifier.

        Args: own: of each in turn, the caller's, which is then only named.
        Raises: ModelError: one cannot be loaded, or has other classes than the teacher, or
            the same in another order.
        """
        networks: dict[str, Classifier] = {}
        # The caller's may be fewer: those that are named alone need no place in them.
        for spec, given in zip(specs, itertools.chain(own, itertools.repeat(None)), strict=False):
            network = given or models.load_beside(
                spec, trust_pickle=trust_pickle, on_event=on_event
            )
            on_event(Note(f"verifier: {network.card.source}"))
            teacher.card.require_classes(
                network.card, whose=f"--verifier {spec}", role="the teacher"
            )
            networks[_name(spec, {*networks, *_TAKEN})] = network
        return cls(networks)

    def identity(self) -> dict[str, Any]:
        """Of each, what its judgement depends on: the hash of its weights, and its card."""
        return {
            name: {"sha256": network.sha256(), **network.card.facts()}
            for name, network in self._networks.items()
        }

    @contextmanager
    def on(self, device: str) -> Iterator[None]:
        """Hold the networks frozen on `device` while the block lasts."""
        with ExitStack() as stack:
            for network in self._networks.values():
                stack.enter_context(on_device(network.module, device))
            self._device = device
            yield

    @torch.inference_mode()
    def predictions(self, images: Tensor) -> dict[str, Tensor]:
        """Top-1 of every verifier, int64 (B,), for uint8 images (B, C, H, W) in [0, 255]."""
        return {
            name: torch.cat([self._predict(network, part) for part in torch.split(images, _CHUNK)])
            for name, network in self._networks.items()
        }

    def _predict(self, network: Classifier, images: Tensor) -> Tensor:
        card = network.card
        x = images.to(self._device).float() / 255
        if x.shape[1] != card.input_size[0]:
            x = x.mean(1, keepdim=True).expand(-1, card.input_size[0], -1, -1)
        if x.shape[2:] != card.input_size[1:]:
            x = F.interpolate(x, card.input_size[1:], mode="bilinear", antialias=True)
        top1: Tensor = network.module(normalise(x, mean=card.mean, std=card.std)).argmax(1)
        return top1.cpu()
