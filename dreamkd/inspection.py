"""What a network offers to inversion: its batch-norm layers, in the order in which they run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dreamkd import batchnorm, models
from dreamkd.batchnorm import Call, Layer
from dreamkd.data import ImageSet
from dreamkd.errors import ModelError, NoBatchNormError
from dreamkd.models import ONE_CLASS, Card, Classifier, extents
from dreamkd.observation import Observer
from dreamkd.randomness import generator_for

#: Batches that given images are compared by.
_BATCHES = 10


@dataclass(frozen=True)
class Summary:
    """A vector over channels in three numbers."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One batch-norm layer. Without weights (on the meta device) there is nothing to summarise."""

    name: str
    kind: str
    channels: int
    resolution: tuple[int, ...] | None  # (H, W) of its first input; None: it never ran
    calls: int  # in one forward pass
    running_mean: Summary | None
    running_var: Summary | None
    distance: float | None  # of given images' statistics from the stored, over its calls; mean
    untrained: bool  # mean 0 and variance 1 in every channel: nothing was learned, or no weights
    broken: str  # what is wrong with the statistics; "" when nothing is
    dead_channels: int  # of variance 0: no obstacle


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Given images beside the stored statistics: R_feature (Eq. 4) of batches drawn from them."""

    source: str
    images: int  # that there are; those that fill no batch, or an eleventh, are left out
    batches: int
    batch_size: int
    r_feature: float  # mean over the batches
    spread: float  # their standard deviation; 0 of one
    r_feature_chance: float  # what as many and as varied images show by chance, mean
    layers: dict[str, float]  # the layers' shares, mean


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The layers of a network in execution order, those that never ran last, and a verdict."""

    card: Card
    layers: tuple[LayerReport, ...]
    norms: dict[str, int]  # other normalisation layers: kind -> count
    obstacle: str  # why R_feature has no statistics to match; "" where it has
    verdict: str  # "invertible…", or "not, because …"
    compared: Comparison | None = None

    @property
    def invertible(self) -> bool:
        """Whether R_feature has statistics to match."""
        return not self.obstacle

    @property
    def never_ran(self) -> tuple[str, ...]:
        """Layers that a forward pass does not reach; R_feature never sees them."""
        return tuple(layer.name for layer in self.layers if layer.calls == 0)

    @property
    def repeated(self) -> tuple[str, ...]:
        """Layers that run more than once; R_feature has one term for each call."""
        return tuple(layer.name for layer in self.layers if layer.calls > 1)

    @property
    def error(self) -> ModelError | NoBatchNormError | None:
        """What to raise, after showing the table, when it cannot be inverted."""
        name = self.card.architecture
        if self.invertible:
            return None
        if not (self.card.takes_pictures and self.card.has_choice):
            return ModelError(f"{name} cannot be inverted: {self.obstacle}")
        return NoBatchNormError(f"{name} stores no usable batch-norm statistics: {self.obstacle}")

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, sequences and dicts."""
        return {
            "model": asdict(self.card),
            "layers": [asdict(layer) for layer in self.layers],
            "never_ran": self.never_ran,
            "repeated": self.repeated,
            "norms": self.norms,
            "invertible": self.invertible,
            "obstacle": self.obstacle,
            "verdict": self.verdict,
            "compared": self.compared and asdict(self.compared),
        }


def inspect(
    classifier: Classifier, images: ImageSet | None = None, *, batch_size: int = 256
) -> Inspection:
    """List batch-norm layers by one forward pass of a blank image and judge their statistics.

    Args:
        images: preprocessed for the network, to be compared with what it stores, if it stores any.
        batch_size: images whose statistics are taken together.

    Raises:
        ModelError: the network does not run at the input size of its card.
        DataError: an image cannot be read.
    """
    found = batchnorm.layers(classifier.module)
    # Without batch norm no order is asked for, and a transformer of billions need not run.
    calls = _trace(classifier) if found else []
    counts = Counter(call.layer.name for call in calls)
    resolutions = {call.layer.name: call.shape[2:] for call in reversed(calls)}
    by_name = {layer.name: layer for layer in found}
    order = [*dict.fromkeys(call.layer.name for call in calls)]
    order += [name for name in by_name if name not in counts]
    reports = tuple(
        _report(by_name[name], calls=counts[name], resolution=resolutions.get(name))
        for name in order
    )
    norms = _other_norms(classifier.module)
    obstacle = _obstacle(found, norms, classifier.card, runs=bool(calls))
    verdict = f"not, because {obstacle}" if obstacle else _promise(reports, classifier.card)
    compared = None
    if images is not None and not obstacle:
        compared = compare(classifier, images, calls, batch_size=batch_size)
        reports = tuple(
            replace(report, distance=compared.layers.get(report.name)) for report in reports
        )
    return Inspection(
        card=classifier.card,
        layers=reports,
        norms=norms,
        obstacle=obstacle,
        verdict=verdict,
        compared=compared,
    )


def compare(
    classifier: Classifier, images: ImageSet, calls: Sequence[Call], *, batch_size: int
) -> Comparison:
    """R_feature (Eq. 4) of batches drawn from `images` without replacement, at most ten.

    Args:
        calls: of batch-norm layers in a forward pass.
        batch_size: images of a batch; all of them where they are fewer.

    Raises: DataError: an image cannot be read.
    """
    size = min(batch_size, len(images))
    order = torch.randperm(len(images), generator=generator_for(0, "compare"))
    drawn = torch.split(order, size)[: min(_BATCHES, len(images) // size)]
    seen, rows = [], []
    with Observer(classifier, device="cpu") as observe:
        for part in drawn:
            batch = torch.stack([images[index][0] for index in part.tolist()])
            seen.append(observe(batch, torch.zeros(size, dtype=torch.int64)))
            rows.append(seen[-1].distances)
    totals = [observation.r_feature for observation in seen]
    layers: dict[str, float] = {}
    for call, share in zip(calls, torch.stack(rows).mean(0).tolist(), strict=True):
        layers[call.layer.name] = layers.get(call.layer.name, 0.0) + share
    return Comparison(
        source=images.source,
        images=len(images),
        batches=len(drawn),
        batch_size=size,
        r_feature=statistics.mean(totals),
        spread=statistics.stdev(totals) if len(totals) > 1 else 0.0,
        r_feature_chance=statistics.mean(o.r_feature_chance for o in seen),
        layers=layers,
    )


def _trace(classifier: Classifier) -> list[Call]:
    card, module = classifier.card, classifier.module
    device = next(module.parameters()).device
    try:
        return batchnorm.trace(module, torch.zeros(1, *card.input_size, device=device))
    except Exception as error:  # whatever an operation says of a shape it cannot take
        if device.type == "meta":  # some operations have no meta kernel: allocate after all
            return _trace(_allocated(card))
        size = extents(card.input_size)
        raise ModelError(
            f"{card.architecture} does not run at input {size}: {type(error).__name__}: {error}; "
            "pass the size it was trained at (--input-size)"
        ) from error


def _allocated(card: Card) -> Classifier:
    return models.load(
        card.architecture,
        pretrained=False,
        num_classes=card.num_classes,
        input_size=card.input_size,
        mean=card.mean,
        std=card.std,
    )


def _report(layer: Layer, *, calls: int, resolution: tuple[int, ...] | None) -> LayerReport:
    mean, var = layer.running_mean, layer.running_var
    empty = mean.is_meta
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        channels=layer.channels,
        resolution=resolution,
        calls=calls,
        running_mean=None if empty else _summary(mean),
        running_var=None if empty else _summary(var),
        distance=None,
        untrained=empty or batchnorm.is_untrained(layer),
        broken="" if empty else batchnorm.defect(layer),
        dead_channels=0 if empty else batchnorm.dead_channels(layer),
    )


def _summary(values: Tensor) -> Summary:
    values = values.double()
    return Summary(float(values.min()), float(values.mean()), float(values.max()))


def _obstacle(found: Sequence[Layer], norms: Mapping[str, int], card: Card, *, runs: bool) -> str:
    """Why the network cannot be inverted, or not once it is trained; "" if it can.

    Args: runs: whether a forward pass reaches a layer.
    """
    if not card.takes_pictures:
        return f"its {card.input_size[0]} channels are neither grey nor RGB"
    if not card.has_choice:
        return ONE_CLASS
    if not found:
        others = ", ".join(f"{number} {kind}" for kind, number in norms.items())
        return f"{batchnorm.unusable(found)} (it has {others or 'no norm at all'})"
    if not runs:
        return batchnorm.unreached(found)
    return batchnorm.unusable(found) if card.pretrained else ""


def _promise(layers: Sequence[LayerReport], card: Card) -> str:
    """What can be said of a network that can be inverted, in one line."""
    count = len(layers)
    if not card.pretrained:
        alone = "of the architecture alone, its weights are random"
        return f"invertible once trained: {count} batch-norm layers ({alone})"
    notes = {
        "look untrained": sum(layer.untrained for layer in layers),
        "have dead channels (variance 0)": sum(layer.dead_channels > 0 for layer in layers),
        "never run": sum(layer.calls == 0 for layer in layers),
    }
    said = "".join(f"; {number} {what}" for what, number in notes.items() if number)
    return f"invertible: {count} batch-norm layers{said}"


def _other_norms(module: nn.Module) -> dict[str, int]:
    """Normalisation layers that keep no running statistics, by class name."""
    known = {id(layer.module) for layer in batchnorm.layers(module)}
    kinds = Counter(type(m).__name__ for m in module.modules() if id(m) not in known and _norm(m))
    return dict(sorted(kinds.items()))


def _norm(module: nn.Module) -> bool:
    # Libraries define dozens; blocks named after the norm inside them hold no parameters.
    named = "norm" in type(module).__name__.lower()
    own = any(True for _ in module.parameters(recurse=False))
    return isinstance(module, _NORMS) or (named and own)


_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,
)
