"""Classifiers of any source behind one door: `load`, `create`, `save`.

`load(spec)` takes a bundled teacher, a name of torchvision or timm, or a checkpoint file; the
`Classifier` that comes back knows its architecture, classes, input size and normalisation.
"""

from dreamkd.models.beside import load_beside
from dreamkd.models.card import ONE_CLASS, Card, extents
from dreamkd.models.classifier import Classifier
from dreamkd.models.fresh import create, with_new_head
from dreamkd.models.loading import is_file, load, save
from dreamkd.models.zoo import Architecture, all_names, architectures, bundled, resolve

__all__ = [
    "ONE_CLASS",
    "Architecture",
    "Card",
    "Classifier",
    "all_names",
    "architectures",
    "bundled",
    "create",
    "extents",
    "is_file",
    "load",
    "load_beside",
    "resolve",
    "save",
    "with_new_head",
]
