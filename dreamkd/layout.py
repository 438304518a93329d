"""Which images a run of `invert` holds, and how they are dealt into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from dreamkd import samples
from dreamkd.config import InvertConfig
from dreamkd.errors import ConfigError
from dreamkd.images import IMAGES
from dreamkd.labels import count_images, label_range, parse_classes, parse_weights, plan_batches
from dreamkd.models import Card


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The images of a run, numbered: which class each shows, and which batch it belongs to."""

    classes: list[int]
    weights: list[float]
    count: int  # images in all
    seed: int

    @classmethod
    def of(cls, config: InvertConfig, card: Card) -> Self:
        """Raises: ConfigError: no such class, or no image at all."""
        names: dict[str, Any] = {
            "num_classes": card.num_classes,
            "class_names": card.class_names,
        }
        classes = parse_classes(config.classes, **names)
        weights = parse_weights(config.class_weights, classes, **names)
        count = count_images(weights, config.per_class)
        if count == 0:
            raise ConfigError("--class-weights and --per-class leave no image to make")
        return cls(classes=classes, weights=weights, count=count, seed=config.seed)

    def labels(self, start: int, stop: int) -> Tensor:
        """Labels of images start..stop-1, int64."""
        return label_range(self.classes, start, stop, seed=self.seed, weights=self.weights)

    def batches(
        self, config: InvertConfig, *, made: Sequence[Mapping[str, Any]] = ()
    ) -> list[tuple[int, int]]:
        """Images [start, stop) of every batch; those already made stay as they are.

        Args: made: manifest lines.
        """
        ranges = {line["batch"]: (line["start"], line["start"] + line["count"]) for line in made}
        return plan_batches(self.count, int(config.image_batch_size), made=ranges)

    def room(self, config: InvertConfig, card: Card, *, made: int) -> int:
        """Bytes that a run of `made` images still writes, at most, with what a generator carries.

        Twice the latter: the new state is written before the old one goes.
        """
        carried = IMAGES[config.images].carried(card.input_size)
        return samples.room(max(0, self.count - made), card.input_size) + 2 * carried
