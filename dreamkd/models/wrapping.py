"""The weights of a network inside what a training framework saved around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from dreamkd.checkpoint import without_prefixes
from dreamkd.models.recognition import essential


def unwrapped(
    state: Mapping[str, Tensor], fits: Callable[[Mapping[str, Tensor]], bool]
) -> tuple[Mapping[str, Tensor], str]:
    """The weights of a network inside what holds it, and in words what was done to get there.

    A training framework's module holds its network under a name (`model.conv1.weight`), beside a
    loss or a normalisation; and a head replaced by a sequence of one linear layer and what has no
    weights, such as dropout, numbers it (`fc.1.weight`).

    Args: fits: whether entries are those of a network.
    Returns: the first that fits, of the entries as they are, then with a plain head, then below one
        name; the entries as they are if none does.
    """
    if fits(state):
        return state, ""
    for entries, where in ((state, ""), *_parts(state)):
        for inner, head in ((entries, ""), _plain_head(entries)):
            if inner and (where or head) and fits(inner):
                return inner, where + head
    return state, ""


def _parts(state: Mapping[str, Tensor], above: str = "") -> Iterator[tuple[dict[str, Tensor], str]]:
    """What lies below each first name, the largest part first; below several, where most does."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = tensor
    for first, part in sorted(parts.items(), key=lambda item: -len(item[1])):
        inner, place = essential(without_prefixes(part)), f"{above}{first}"
        yield inner, f", below {place!r}"
        if 2 * len(part) >= len(state):
            yield from _parts(inner, f"{place}.")


def _plain_head(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The entries with the head's number left out; empty if no linear layer is alone in its place.

    Last come the numbered layers of a head: `fc.1.weight`, `fc.1.bias`.
    """
    for name in reversed([name for name, tensor in state.items() if tensor.dim() == 2]):
        layer, _, kind = name.rpartition(".")
        head, _, number = layer.rpartition(".")
        beside = {key for key in state if key.startswith(f"{head}.")}
        if number.isdigit() and kind == "weight" and beside <= {name, f"{layer}.bias"}:
            renamed = {
                f"{head}{key.removeprefix(layer)}" if key in beside else key: tensor
                for key, tensor in state.items()
            }
            return renamed, f", {layer} taken for {head}"
    return {}, ""
