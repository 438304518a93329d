"""Networks beside the teacher: what the command line says of a model, it says of the teacher."""

from __future__ import annotations

from dreamkd.errors import ModelError, UnrecognisedError
from dreamkd.events import OnEvent, ignore
from dreamkd.models.classifier import Classifier
from dreamkd.models.loading import load


def load_beside(
    spec: str,
    *,
    input_size: tuple[int, ...] | None = None,
    trust_pickle: bool = False,
    on_event: OnEvent = ignore,
) -> Classifier:
    """Load a network beside the teacher, of which `--arch` and the like say nothing.

    Args: as of `load`.
    Raises: ModelError: as of `load`; a file that does not tell its architecture says how it may.
    """
    try:
        return load(spec, input_size=input_size, trust_pickle=trust_pickle, on_event=on_event)
    except UnrecognisedError as error:
        keep = f"dreamkd inspect {spec} --arch NAME --save FILE"
        raise ModelError(f"{error.fact}; keep it with its architecture: {keep}") from error
