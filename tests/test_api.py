"""`import dreamkd`: the commands as functions."""

import subprocess
import sys
from pathlib import Path

import pytest

import dreamkd
from dreamkd.config import ModelConfig
from dreamkd.errors import ConfigError
from dreamkd.events import Event, Progress
from dreamkd.models import Classifier
from tests.conftest import PLAIN

QUICK = {**PLAIN, "image_steps": 2, "image_batch_size": 20}


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, dreamkd; print('torch' in sys.modules, dir(dreamkd)); dreamkd.load"
    code += "; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = found.stdout.splitlines()
    assert before.startswith("False")
    assert all(repr(name) in before for name in dreamkd.__all__)
    assert after == "True"


def test_images_are_made_and_read(digits: Classifier, tmp_path: Path) -> None:
    heard: list[Event] = []
    out = tmp_path / "run"
    run = dreamkd.invert(digits, per_class=2, out=out, on_event=heard.append, **QUICK)
    assert any(isinstance(event, Progress) for event in heard)
    for where in (run, out, str(out)):
        read = [(image.shape, label) for image, label, _ in dreamkd.read(where)]
        assert [shape for shape, _ in read] == [(1, 16, 16)] * 20
        assert sorted(label for _, label in read) == sorted([*range(10)] * 2)


@pytest.mark.parametrize("named", [True, False])
def test_a_student_learns_whether_networks_are_named_or_given(
    digits: Classifier, named: bool, tmp_path: Path
) -> None:
    short = {**QUICK, "first_batches": 1, "rounds": 1, "steps": 3, "batch_size": 8}
    first = dreamkd.distill("digits_resnet14", "cifar_resnet8", out=tmp_path / "first", **short)
    pair = ("digits_resnet14", first.student) if named else (digits, dreamkd.load(first.student))
    found = dreamkd.distill(*pair, out=tmp_path / "run", **short)
    assert found.steps == 3
    assert len([*dreamkd.read(found)]) == found.images == 40
    assert dreamkd.load(found.student).card.data_free


def test_options_are_checked_as_on_the_command_line(digits: Classifier) -> None:
    with pytest.raises(ConfigError, match="per_clas"):
        dreamkd.invert(digits, per_clas=2)
    with pytest.raises(ConfigError, match=r"--per-class: 0 is out of range"):
        dreamkd.invert("digits_resnet14", per_class=0)


STATED = {
    "arch": "nope",
    "num_classes": 77,
    "input_size": 32,
    "mean": (0.9,),
    "std": (0.9,),
    "class_names": "names.txt",
}


@pytest.mark.parametrize("name", STATED)
def test_of_a_given_network_its_card_alone_says_what_it_is(name: str, digits: Classifier) -> None:
    said = {name: STATED[name]}
    line = f"--{name.replace('_', '-')} has no effect with a given network: its own card says it"
    with pytest.raises(ConfigError, match=f"^{line}$"):
        dreamkd.invert(digits, **said)
    with pytest.raises(ConfigError, match=f"^{line}$"):
        dreamkd.distill(digits, "cifar_resnet8", **said)


def test_every_option_about_a_model_has_been_thought_of() -> None:
    assert {*STATED, "trust_pickle"} == {*ModelConfig.__dataclass_fields__}


def test_other_networks_may_be_pickles_beside_a_given_one(
    digits: Classifier, tmp_path: Path
) -> None:
    run = dreamkd.invert(digits, per_class=1, out=tmp_path / "run", trust_pickle=True, **QUICK)
    assert run.images == 10


@pytest.mark.parametrize("name", ["verifier", "student", "bn_prior"])
def test_a_network_is_no_name_of_one(name: str, digits: Classifier) -> None:
    line = f"^--{name.replace('_', '-')}: a value of type Classifier is not text$"
    for value in (digits, [digits]) if name == "verifier" else (digits,):
        with pytest.raises(ConfigError, match=line):
            dreamkd.invert("digits_resnet14", **{name: value})


def test_a_bare_module_is_refused_in_one_line(digits: Classifier) -> None:
    kind = type(digits.module).__name__
    with pytest.raises(ConfigError, match=f"^MODEL: a value of type {kind} is not text$"):
        dreamkd.invert(digits.module)
    with pytest.raises(ConfigError, match=f"^--student: a value of type {kind} is not text$"):
        dreamkd.distill(digits, digits.module)


def test_it_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'invrt'"):
        dreamkd.invrt  # noqa: B018
