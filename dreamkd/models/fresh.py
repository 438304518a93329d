"""Networks that begin from a seed: whole, or below a head of other classes with known weights."""

from __future__ import annotations

from dataclasses import replace

from dreamkd.copying import give
from dreamkd.models import zoo
from dreamkd.models.card import Card
from dreamkd.models.classifier import Classifier, parameters


def create(
    name: str,
    *,
    num_classes: int,
    input_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: tuple[str, ...] = (),
    seed: int = 0,
) -> Classifier:
    """A fresh student: the architecture `name` with weights drawn from `seed`.

    The global random state is as before. Pictures are taken whole (`crop_pct` 1).

    Raises:
        ModelError: the name is unknown, or the architecture does not take this size.
    """
    architecture = zoo.resolve(name)
    defaults = architecture.defaults()
    module = architecture.build(num_classes=num_classes, input_size=input_size, seed=seed)
    card = Card(
        architecture=str(architecture),
        weights="random",
        source=f"{name}: {architecture}, fresh weights from seed {seed}",
        num_classes=num_classes,
        class_names=class_names,
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation=defaults.interpolation,
        crop_pct=1.0,
        parameters=parameters(module),
        pretrained=False,
    )
    return Classifier(module, card)


def with_new_head(
    classifier: Classifier, *, num_classes: int, class_names: tuple[str, ...] = (), seed: int = 0
) -> Classifier:
    """The same weights but for those that follow the class count, which are drawn from `seed`.

    What it expects of images stays as it is.
    """
    card = classifier.card
    module = zoo.resolve(card.architecture).build(
        num_classes=num_classes, input_size=card.input_size, seed=seed
    )
    fresh, state = module.state_dict(), classifier.module.state_dict()
    alike = {name: tensor for name, tensor in state.items() if tensor.shape == fresh[name].shape}
    give(module, {**fresh, **alike})
    return Classifier(
        module,
        replace(
            card,
            source=f"{card.source}, a fresh head of {num_classes} classes",
            num_classes=num_classes,
            class_names=class_names,
            parameters=parameters(module),
        ),
    )
