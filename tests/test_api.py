"""`import dreamkd`: the commands as functions."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

import dreamkd
from dreamkd.config import InvertConfig, ModelConfig, merge
from dreamkd.engine.ambient import ordinary
from dreamkd.errors import ConfigError, RunError, Stopped
from dreamkd.events import Event, Progress
from dreamkd.keywords import given, plain
from dreamkd.models import Classifier
from tests.conftest import PLAIN

QUICK = {**PLAIN, "image_steps": 2, "image_batch_size": 20}
STUDENT = {**QUICK, "first_batches": 1, "rounds": 1, "steps": 3, "batch_size": 8}


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


def test_a_bare_module_is_refused_with_what_to_do(digits: Classifier) -> None:
    line = r": a network alone does not say what its images are: dreamkd\.Classifier\.of\(network"
    with pytest.raises(ConfigError, match=f"^model{line}"):
        dreamkd.invert(digits.module)
    with pytest.raises(ConfigError, match=f"^student{line}"):
        dreamkd.distill(digits, digits.module)
    with pytest.raises(ConfigError, match=f"^verifier{line}"):
        dreamkd.invert(digits, verifier=["digits_resnet14", digits.module])
    with pytest.raises(ConfigError, match=f"^bn_prior{line}"):
        dreamkd.distill(digits, digits, bn_prior=digits.module)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("device", torch.device("cpu"), "cpu"),
        ("classes", range(3), "0,1,2"),
        ("classes", [0, 3], "0,3"),
        ("classes", {10, 2, "cat"}, "2,10,cat"),
        ("classes", np.array([1, 2]), "1,2"),
        ("class_weights", {3: 2, "4": 0.5}, "3:2,4:0.5"),
        ("stages", np.array([2, 1]), (2, 1)),
        ("stages", torch.tensor([1]), (1,)),
        ("flip", True, "on"),
        ("clip", False, "off"),
        ("compile", False, "off"),
        ("image_steps", None, "auto"),
        ("verifier", None, ()),
        ("student", None, None),
        ("per_class", np.int64(3), 3),
    ],
)
def test_options_are_what_python_has_for_them(option: str, value: Any, text: Any) -> None:
    settings = merge(InvertConfig, given(InvertConfig, {"model": "net", option: value}))
    assert getattr(settings, option) == text


def test_a_name_with_a_comma_is_no_list() -> None:
    line = "^--classes: 'flute, transverse' has a comma in it; give its number$"
    with pytest.raises(ConfigError, match=line):
        dreamkd.invert("digits_resnet14", classes=["flute, transverse", "cat"])


class Place:
    """A path of no kind that pathlib knows."""

    def __fspath__(self) -> str:
        return "t.pt"


def test_any_path_is_one() -> None:
    assert plain("model", Place()) == "t.pt"


@pytest.mark.parametrize("option", ["json", "quiet"])
def test_options_about_printing_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{option} has no effect in Python"):
        dreamkd.inspect("digits_resnet14", **{option: True})


def test_none_does_not_hide_a_wrong_name() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'per_clas'"):
        dreamkd.invert("digits_resnet14", per_clas=None)


@pytest.mark.parametrize("named", [True, False])
def test_networks_are_inspected_and_evaluated(
    digits: Classifier, named: bool, tmp_path: Path
) -> None:
    model = "digits_resnet14" if named else digits
    found = dreamkd.inspect(model, data="sklearn:digits", save=tmp_path / "t.safetensors")
    assert found.invertible
    assert found.compared is not None
    measured = dreamkd.evaluate(model, "sklearn:digits", teacher=tmp_path / "t.safetensors")
    assert (measured.top1, measured.agreement) == (98.5, 100.0)
    run = dreamkd.invert(model, per_class=2, out=tmp_path / "run", **QUICK)
    assert dreamkd.evaluate(model, run, teacher=model).count == 20


def test_a_given_network_has_its_weights(digits: Classifier) -> None:
    with pytest.raises(ConfigError, match=r"^--no-pretrained has no effect with a given network$"):
        dreamkd.inspect(digits, no_pretrained=True)


def test_it_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'invrt'"):
        dreamkd.invrt  # noqa: B018


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "a GPU that may not be here": lambda: torch.device("cuda"),
    "meta for all": lambda: default_device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
}


def modes() -> list[object]:
    """Torch's as they are; a device only where asking for it makes nothing on it."""
    stack = torch.overrides._get_current_function_mode_stack()
    torch.autocast_increment_nesting()
    return [
        torch.autocast_decrement_nesting(),
        torch.is_autocast_cache_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        [getattr(mode, "device", mode) for mode in stack],
    ]


def images(folder: Path) -> bytes:
    """Of a short inversion."""
    network = dreamkd.load("digits_resnet14")
    dreamkd.invert(network, per_class=1, out=folder, **QUICK)
    return (folder / "shards" / "shard-000000.tar").read_bytes()


def student(folder: Path) -> bytes:
    """Of a short distillation, whose own autocast casts weights that change from step to step."""
    short = {**STUDENT, "image_batch_size": 10, "precision": "bf16"}
    run = dreamkd.distill("digits_resnet14", "cifar_resnet8", out=folder, **short)
    return Path(run.student).read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Callable[[Path], bytes], bytes]:
    return {make: make(tmp_path_factory.mktemp("made") / "run") for make in (images, student)}


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        *((images, mode) for mode in MODES),
        *((student, mode) for mode in ("autocast", "float64", "inference")),
    ],
)
def test_nothing_depends_on_the_modes_it_is_called_in_and_none_is_changed(
    make: Callable[[Path], bytes],
    mode: str,
    made: dict[Callable[[Path], bytes], bytes],
    tmp_path: Path,
) -> None:
    with MODES[mode]():
        before = modes()
        assert make(tmp_path / "run") == made[make]
        assert modes() == before


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_put_back_after_an_exception(mode: str, tmp_path: Path) -> None:
    with MODES[mode]():
        before = modes()
        with pytest.raises(RuntimeError, match="of the caller"), ordinary():
            raise RuntimeError("of the caller")
        assert modes() == before


def test_a_second_distillation_in_one_process_is_refused_at_once(tmp_path: Path) -> None:
    said: list[str] = []

    def second() -> None:
        with pytest.raises(RunError) as error:
            dreamkd.distill("digits_resnet14", "cifar_resnet8", out=tmp_path / "b", **STUDENT)
        said.append(str(error.value))

    def ask() -> bool:
        """While the first one works: from another thread, and from its own."""
        thread = Thread(target=second)
        thread.start()
        thread.join()
        second()
        return True

    with pytest.raises(Stopped):
        dreamkd.distill(
            "digits_resnet14", "cifar_resnet8", out=tmp_path / "a", should_stop=ask, **STUDENT
        )
    line = "another distillation runs in this process; start it in a process of its own"
    assert len(said) >= 2
    assert set(said) == {line}
    assert not (tmp_path / "b").exists()
    dreamkd.distill("digits_resnet14", "cifar_resnet8", out=tmp_path / "a", **STUDENT)
