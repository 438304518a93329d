"""Names of classes: which of a network's classes a folder stands for."""

import time
from dataclasses import replace

import pytest
from PIL import Image

from dreamkd.data import ImageSet, Preprocessing
from dreamkd.data.pictures import Pictures
from dreamkd.errors import DataError
from dreamkd.events import Hint, ignore
from dreamkd.models import Card

GREY = Preprocessing(input_size=(1, 4, 4))


class Blank(Pictures):
    """One picture of every class."""

    def __init__(self, class_names):
        super().__init__(source="blank", class_names=class_names)

    def __len__(self):
        return len(self.class_names)

    def __getitem__(self, index):
        return Image.new("L", (4, 4)), index


def labelled(folders, network, on_event=ignore, **changes) -> ImageSet:
    card = Card(
        source="by hand",
        weights="none",
        architecture="net",
        num_classes=len(network or folders),
        input_size=(1, 4, 4),
        mean=(0.0,),
        std=(1.0,),
        interpolation="bicubic",
        crop_pct=1.0,
        parameters=0,
        pretrained=False,
        class_names=tuple(network),
    )
    card = replace(card, **changes)
    return ImageSet(Blank(folders), GREY).labelled_by(card, on_event=on_event)


def told(folders, network) -> list[str]:
    """What is said of how classes are numbered."""
    heard = []
    labelled(folders, network, on_event=heard.append)
    return [event.text for event in heard if isinstance(event, Hint)]


def test_an_order_that_no_name_confirms_is_told() -> None:
    (line,) = told(["chat", "chien", "zèbre"], ["cat", "dog", "zebra"])
    order = "'chat' is 'cat', 'chien' is 'dog', …"
    assert line == f"blank: no name is the network's; by their order {order}"
    assert told(["cat", "dog"], ["dog", "cat"]) == []
    assert told(["chat"], ["cat", "dog"]) == []  # refused afterwards


@pytest.mark.parametrize(
    ("folders", "line"),
    [
        (["c1", "c10", "c2"], "so that 'c10' comes before 'c2'; timm's training"),
        (
            ["Bengal", "Siamese", "basset"],
            "so that 'Bengal' comes before 'basset'; timm's",
        ),
        (["1a", "a1", "b"], ""),
        (["b", "a"], ""),  # of a data set that numbers them itself
    ],
)
def test_folders_that_timm_would_number_otherwise_are_told(folders, line) -> None:
    heard = []
    labelled(folders, [], heard.append, architecture="timm:net")
    assert [line in event.text for event in heard] == [True] * bool(line)
    labelled(folders, [], heard.append)  # torchvision's
    labelled(folders, folders, heard.append, architecture="timm:net")
    assert len(heard) == bool(line)


def numbers(folders, network) -> list[int]:
    images = labelled(folders, network)
    return [images[k][1] for k in range(len(images))]


@pytest.mark.parametrize(
    ("folders", "network", "expected"),
    [
        (["Cat", "Dog", "Zebra"], ["zebra", "cat", "dog"], [1, 2, 0]),
        (["great_ape", "sea-lion"], ["Sea Lion", "Great Ape", "dog"], [1, 0]),
        (["GreatApe", "SEALION"], ["sea lion", "great ape"], [1, 0]),
        (["cat", "Dog"], ["Dog", "cat"], [1, 0]),
        (["Dog", "cat"], ["dog", "cat"], [0, 1]),
        (["Cat", "cat"], ["cat", "Cat"], [1, 0]),  # two of the network that differ so
        (["sun_glass", "sunglass"], ["sunglass", "sun_glass", "x"], [1, 0]),
        (["-", "_"], ["_", "-"], [1, 0]),
        (["a", "b"], ["x", "y"], [0, 1]),  # nothing in common: by number
    ],
)
def test_names_that_differ_by_case_and_separators_are_the_same(folders, network, expected):
    assert numbers(folders, network) == expected


@pytest.mark.parametrize(
    ("folders", "network", "says"),
    [
        (["CAT", "dog"], ["cat", "Cat", "dog"], "blank: 'CAT' names two classes of net; rename it"),
        (["Crane", "x"], ["crane", "dog", "crane"], "'Crane' names two classes of net"),
        (["Cat", "cat"], ["cat", "dog"], "'Cat' and 'cat' both name 'cat' of net; rename one"),
        (["Cat", "Cow"], ["cat", "dog"], "'Cow' names no class of net"),
        (["-", "cat"], ["_", "cat"], "'-' names no class of net"),
    ],
)
def test_names_that_stand_for_no_class_or_two_are_refused(folders, network, says):
    with pytest.raises(DataError, match=says):
        labelled(folders, network)


def test_many_names_are_matched_at_once():
    names = [f"class {k}" for k in range(21_841)]
    start = time.process_time()
    assert labelled(names[::-1], names).numbers == tuple(range(21_841))[::-1]
    assert time.process_time() - start < 5
