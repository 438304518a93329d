"""The normalisation of images that a checkpoint holds beside its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile

from torch import Tensor

#: What buffers of mean and std are called: by most, by robustness, by RobustBench.
_NAMES = (("mean", "std"), ("new_mean", "new_std"), ("mu", "sigma"))

Values = tuple[float, ...]


def without(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The entries but for those of a normalisation."""
    pairs = {name for pair in _pairs(state) for name in pair}
    return {name: tensor for name, tensor in state.items() if name not in pairs}


def beside(
    state: Mapping[str, Tensor], place: str, *, channels: int
) -> tuple[dict[str, tuple[str, Values]], str]:
    """Mean and std of the normalisation nearest to a network, or why there are none.

    Args:
        place: the names above the network.
        channels: C; buffers of any shape hold so many values, or one for all channels.
    Returns: of "mean" and "std" the entry's name and its values; or none, and in words why those
        that are there cannot be meant.
    """
    pairs = [p for p in _pairs(state) if all(state[n].numel() in (1, channels) for n in p)]
    nearest = max((_near(pair[0], place) for pair in pairs), default=0)
    pairs = [pair for pair in pairs if _near(pair[0], place) == nearest]
    found = {pair: tuple(_values(state[name], channels) for name in pair) for pair in pairs}
    if len({*found.values()}) > 1:
        return {}, f"; {_listed(pairs)} disagree: pass --mean and --std"
    for pair, (mean, std) in found.items():
        if all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std):
            return {"mean": (pair[0], mean), "std": (pair[1], std)}, ""
        return {}, f"; {_listed([pair])} are not of pixels in [0, 1]: pass --mean and --std"
    return {}, ""


def _pairs(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names of the entries that are mean and std, side by side."""
    for name in state:
        above, dot, last = name.rpartition(".")
        for mean, std in _NAMES:
            if last == mean and f"{above}{dot}{std}" in state:
                yield name, f"{above}{dot}{std}"


def _near(name: str, place: str) -> int:
    """How many names both lie below."""
    both = zip(name.split("."), place.split("."), strict=False)
    return len([*takewhile(lambda pair: pair[0] == pair[1], both)])


def _values(tensor: Tensor, channels: int) -> Values:
    """As short decimals: float32 knows 0.485 as 0.48500001430511475."""
    values = tuple(float(str(value)) for value in tensor.float().numpy().ravel())
    return values * channels if len(values) < channels else values


def _listed(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(repr(name) for pair in pairs for name in pair)
