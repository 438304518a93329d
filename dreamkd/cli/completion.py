"""What a shell completes a value to, from what is there without importing torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dreamkd.config import OptionField

#: Settings whose value is a model's name; where no name begins so, shells offer files.
_MODELS = ("model", "teacher", "student", "verifier", "bn_prior", "arch")

_FOLDER = Path(__file__).parents[1] / "models"


def offers(field: OptionField) -> Callable[[str], list[str]] | None:
    """The function that completes a value of `field`; None where anything may be typed."""
    if not field.option.choices and field.name not in _MODELS:
        return None

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",") if field.is_list else ("", "", incomplete)
        known = field.option.choices or models(begun)
        return [before + comma + word for word in known if word.startswith(begun)]

    return complete


def models(begun: str) -> Sequence[str]:
    """The bundled teachers, and with the first letter the architectures of the index."""
    bundled = sorted(path.stem for path in (_FOLDER / "bundled").glob("*.safetensors"))
    if not begun:
        return bundled
    index = json.loads((_FOLDER / "index.json").read_text(encoding="utf-8"))
    written = (
        name
        for fingerprint in index["fingerprints"]
        for names in fingerprint["architectures"].values()
        for name in names
    )
    return [*bundled, *sorted({name.partition(":")[2] for name in written})]
