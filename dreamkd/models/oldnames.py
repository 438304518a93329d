"""Names that published weights still have, and what torchvision calls the same tensors now.

torchvision renames them as it loads; here a file is compared with the network by name first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_SINCE = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)"), r"\1\2"),  # DenseNet
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1(?=\.)"), r"\1.0"),  # ViT
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2(?=\.)"), r"\1.3"),
)


def current(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that the installed library gives them."""
    return {_current(name): tensor for name, tensor in state.items()}


def _current(name: str) -> str:
    for old, new in _SINCE:
        name = old.sub(new, name)
    return name
