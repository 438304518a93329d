"""What a shell offers is what a command takes."""

import subprocess
import sys

import pytest

from dreamkd import models
from dreamkd.cli import completion
from dreamkd.config import COMMANDS, OptionField, options

FIELDS = {
    f"{command} {field.flag}": field
    for command, config in COMMANDS.items()
    for field in options(config)
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_every_choice_is_offered(field: OptionField) -> None:
    complete = completion.offers(field)
    if field.option.choices:
        assert complete is not None
        assert complete("") == [*field.option.choices]
        assert complete(field.option.choices[-1]) == [field.option.choices[-1]]
        assert complete("neither") == []


def test_models_are_offered_by_their_names() -> None:
    for name in ("invert MODEL", "eval --teacher", "distill --student", "distill --bn-prior"):
        complete = completion.offers(FIELDS[name])
        assert complete is not None
        assert complete("") == [*models.bundled()]  # a thousand names help nobody
        assert complete("cifar10_") == ["cifar10_resnet20"]
        assert complete("runs/") == []  # the shell's turn, with files
    assert completion.offers(FIELDS["eval --data"]) is None


def test_of_several_models_the_last_is_completed() -> None:
    complete = completion.offers(FIELDS["invert --verifier"])
    assert complete is not None
    assert complete("vit_b_16,digits_r") == ["vit_b_16,digits_resnet14"]


def test_every_name_that_is_offered_is_a_model() -> None:
    offered = completion.models("r")
    strangers = {*offered} - {*models.all_names()}
    assert len(offered) > 1000
    assert len(strangers) < 0.05 * len(offered)  # another timm lost some, or named them anew


def test_offering_models_needs_no_torch() -> None:
    code = "import sys; from dreamkd.cli import completion; completion.models('r')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n"
