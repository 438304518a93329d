"""The weights of a network inside what a training framework saved around them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkd.checkpoint import without_prefixes
from dreamkd.containers import is_average
from dreamkd.errors import ModelError
from dreamkd.models import normalisation
from dreamkd.models.recognition import essential

Fits = Callable[[Mapping[str, Tensor]], bool]


#: What is said of weights that were taken for being an average.
AVERAGE = " (the average of its weights)"

#: Names that may be above a network; how many parts of an entry are looked into, the largest; and
#: those of them with at least so much of it further.
_DEPTH, _PARTS, _SHARE = 8, 16, 1 / 4


@dataclass(frozen=True)
class Network:
    """Entries that are those of a network, and how they were found."""

    state: Mapping[str, Tensor]
    place: str = ""  # the names above it, "model.backbone"; empty for the file's own entries
    head: str = ""  # in words, which layer was taken for its last

    @property
    def said(self) -> str:
        """What was done to find it, for a person; empty if nothing was."""
        average = AVERAGE if is_average(self.place) else ""
        return (f", below {self.place!r}{average}" if self.place else "") + self.head


def unwrapped(state: Mapping[str, Tensor], fits: Fits, *, where: str) -> Network:
    """The network inside what holds it.

    A training framework's module holds its network under a name (`model.conv1.weight`), beside a
    loss, a normalisation or an average of the same weights, which is preferred; and a head replaced
    by a sequence of one linear layer and what has no weights, such as dropout, numbers it
    (`fc.1.weight`).

    Args:
        fits: whether entries are those of a network.
        where: the file, for error messages.
    Returns: the network; the entries as they are if none fits.

    Raises:
        ModelError: several fit, none of which is an average of another, or several averages.
    """
    found = list(_networks(state, fits))
    chosen = [network for network in found if is_average(network.place)] or found
    others = [network for network in chosen[1:] if not _same(network.state, chosen[0].state)]
    if others:
        places = [f"below {n.place!r}" if n.place else "at its top" for n in (chosen[0], *others)]
        raise ModelError(
            f"{where} holds {len(places)} networks, {' and '.join(places)}; save the state_dict() "
            "of the one you mean in a file of its own"
        )
    return chosen[0] if chosen else Network(state)


def _networks(
    state: Mapping[str, Tensor], fits: Fits, place: str = "", *, depth: int = _DEPTH
) -> Iterator[Network]:
    """The entries if they are a network; else every one below a name, and that beside these."""
    own = normalisation.without(state)
    for entries, head in ((state, ""), (own, ""), _plain_head(own)):
        if entries and fits(entries):
            yield Network(entries, place, head)
            return
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items() if depth else ():
        first, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = tensor
    names = set()
    for first, part in sorted(parts.items(), key=lambda item: -len(item[1]))[:_PARTS]:
        inner, below = essential(without_prefixes(part)), f"{place}.{first}" if place else first
        further = depth - 1 if len(part) >= _SHARE * len(state) else 0
        for network in _networks(inner, fits, below, depth=further):
            names.add(first)
            yield network
    if names:
        beside = {k: tensor for k, tensor in state.items() if k.partition(".")[0] not in names}
        yield from _networks(beside, fits, place, depth=0)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both are the same weights, as of a module that is held under two names."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
        for name, tensor in one.items()
    )


def _plain_head(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The entries with the head's number left out; empty if no linear layer is alone in its place.

    Last come the numbered layers of a head: `fc.1.weight`, `fc.1.bias`.
    """
    names = sorted(state)
    for name in reversed([name for name, tensor in state.items() if tensor.dim() == 2]):
        layer, _, kind = name.rpartition(".")
        head, _, number = layer.rpartition(".")
        first = bisect_left(names, f"{head}.")  # three of those below the head tell
        beside = {key for key in names[first : first + 3] if key.startswith(f"{head}.")}
        if number.isdigit() and kind == "weight" and beside <= {name, f"{layer}.bias"}:
            renamed = {
                f"{head}{key.removeprefix(layer)}" if key in beside else key: tensor
                for key, tensor in state.items()
            }
            return renamed, f", {layer} taken for {head}"
    return {}, ""
