"""A network is run once before a job begins, so that what it cannot do is said at once."""

from __future__ import annotations

import torch
from torch import nn

from dreamkd.copying import copied, twin
from dreamkd.errors import ModelError
from dreamkd.models import ONE_CLASS, Card, Classifier, extents
from dreamkd.samples import MAX_SIDE


def try_out(
    classifier: Classifier, *, factor: int = 1, training: bool = False, synthesis: bool = False
) -> None:
    """Run two blank images through a copy, and then one, as the last of a set may be.

    Args:
        factor: by which the images are shrunk on both sides.
        training: as a student, of which something must learn.
        synthesis: as a network whose gradient forms images.

    Raises:
        ModelError: the network does not run at its input size, or takes images that no shard holds;
            or has one class; or its logits do not follow from what learns, or from the images.
    """
    card = classifier.card
    channels, height, width = card.input_size
    shape = (channels, height // factor, width // factor)
    size = extents(shape)
    if max(height, width) > MAX_SIDE:
        raise ModelError(f"no file of a run holds images of {size}: a side is at most {MAX_SIDE}")
    if not card.takes_pictures:
        raise ModelError(f"{card.architecture}: images are grey or RGB, not {size}")
    if not card.has_choice:
        raise ModelError(f"{card.architecture}: {ONE_CLASS}; choose a network of two or more")
    # In evaluation mode nothing changes, so that a large teacher need not be copied.
    probe = copied(classifier.module) if training else twin(classifier.module)
    if synthesis:
        probe.requires_grad_(False)
    blank = torch.zeros(2, *shape)
    # Not a leaf: networks may change their input in place.
    images = blank.requires_grad_().clone() if synthesis else blank
    with torch.set_grad_enabled(training or synthesis):
        outputs = _logits(probe.train(training), images, card)
    with torch.no_grad():
        _logits(probe.eval(), torch.zeros(1, *shape), card)
    if synthesis and not outputs.requires_grad:
        raise ModelError(
            f"{card.architecture}: no gradient of its logits reaches the images, which would be "
            "formed by it; choose another network, or compute all of it with gradients"
        )
    learning = [parameter for parameter in probe.parameters() if parameter.requires_grad]
    if training and not (outputs.requires_grad and _reach(learning, outputs)):
        raise ModelError(
            f"{card.architecture}: none of the parameters that learn reaches its logits; choose "
            "another --student"
        )


def _logits(probe: nn.Module, images: torch.Tensor, card: Card) -> torch.Tensor:
    """What a network gives for images.

    Raises: ModelError: it does not run on them, or it is not a row of logits for each.
    """
    count = len(images)
    seen = f"{count} image{'s' * (count > 1)} of {extents(images.shape[1:])}"
    try:
        with torch.random.fork_rng(devices=[]):  # some drop units at random
            outputs = probe(images)
    except Exception as error:  # whatever an operation says of a shape it cannot take
        raise ModelError(
            f"{card.architecture} does not run on {seen}: {error}; choose another network, "
            "--input-size or --stages"
        ) from error
    if isinstance(outputs, torch.Tensor) and outputs.shape == (count, card.num_classes):
        return outputs
    whole = isinstance(outputs, torch.Tensor)
    got = extents(outputs.shape) if whole else f"a value of type {type(outputs).__name__}"
    raise ModelError(
        f"{card.architecture} gives {got} for {seen}, not a row of {card.num_classes} logits for "
        "each; choose another network, or one around it that gives them"
    )


def _reach(parameters: list[torch.nn.Parameter], outputs: torch.Tensor) -> bool:
    found = torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
    return any(gradient is not None for gradient in found)


def runs(classifier: Classifier, *, factor: int) -> bool:
    """Whether a network runs on images that are shrunk by `factor`."""
    try:
        try_out(classifier, factor=factor)
    except ModelError:
        return False
    return True
