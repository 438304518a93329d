"""The networks beside the teacher: each is trusted, fits, and sees the same images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dreamkd import models
from dreamkd.cli import main
from dreamkd.distillation import distill
from dreamkd.errors import ModelError, RunError
from dreamkd.events import ignore
from dreamkd.inversion import invert
from dreamkd.models import Classifier
from dreamkd.verification import Verifiers
from tests.conftest import distill_config, invert_config


def network(size: tuple[int, int, int] = (1, 16, 16), *, classes: int = 10) -> Classifier:
    channels = size[0]
    return models.create(
        "cifar_resnet8",
        num_classes=classes,
        input_size=size,
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
        seed=3,
    )


def inverted(**given: object) -> None:
    invert(invert_config(model="teacher.safetensors", per_class=1, r_feature=1.0, **given))


def distilled(**given: object) -> None:
    short = {"teacher": "teacher.safetensors", "recipe": "adaptive", "rounds": 0, "steps": 3}
    distill(distill_config(**short, r_feature=1.0, first_batches=1, **given))


def evaluated(teacher: str, *, trust_pickle: bool = False) -> None:
    argv = ["eval", "teacher.safetensors", "--data", "sklearn:digits", "--teacher", teacher]
    with redirect_stderr(StringIO()) as said:
        code = main([*argv, *["--trust-pickle"][:trust_pickle]])
    if code == 3:
        raise ModelError(said.getvalue())


ROLES: dict[str, Callable[..., None]] = {
    "verifier": lambda path, **given: inverted(verifier=path, **given),
    "statistics": lambda path, **given: inverted(bn_prior=path, **given),
    "rival": lambda path, **given: inverted(student=path, method="adaptive", **given),
    "student": lambda path, **given: distilled(student=path, **given),
    "statistics of distill": lambda path, **given: distilled(bn_prior=path, **given),
    "teacher of eval": evaluated,
}


def saved_teacher() -> Classifier:
    """Of 32 px, with statistics."""
    teacher = network((3, 32, 32))
    with torch.no_grad():
        teacher.module.train()(torch.randn(8, 3, 32, 32))
    models.save(teacher, "teacher.safetensors")
    return teacher


@pytest.mark.parametrize("role", ROLES)
def test_a_pickle_is_trusted_in_no_role_unless_the_user_says_so(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of 32 px, which is what a `cifar_resnet8` is taken for where its file is silent."""
    monkeypatch.chdir(tmp_path)
    teacher = saved_teacher()
    torch.save(teacher.module, tmp_path / "t.pt")
    with pytest.raises(ModelError, match="--trust-pickle"):
        ROLES[role]("t.pt")
    ROLES[role]("t.pt", trust_pickle=True)


@pytest.mark.parametrize("role", ROLES)
def test_what_arch_does_not_reach_is_kept_with_the_file(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--arch` is the teacher's, so that the advice cannot be to give it."""
    monkeypatch.chdir(tmp_path)
    saved_teacher()
    save_file({"odd.weight": torch.zeros(3)}, tmp_path / "v.safetensors")
    advice = r"v\.safetensors: no known .*keep it with its architecture: dreamkd inspect v\.safe"
    with pytest.raises(ModelError, match=advice):
        ROLES[role]("v.safetensors")


def test_a_verifier_is_called_by_its_file_wherever_that_lies(
    digits: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for path in ("net.safetensors", "other/net.safetensors", "teacher.safetensors"):
        models.save(digits, path)
    specs = ("net.safetensors", "./other/net.safetensors", "digits_resnet14", "teacher.safetensors")
    verifiers = Verifiers.load(specs, teacher=digits, trust_pickle=False, on_event=ignore)
    # "teacher" alone is the one whose images they are.
    assert list(verifiers.identity()) == ["net", "net-2", "digits_resnet14", "teacher-2"]


@pytest.mark.parametrize("role", ["verifier", "statistics", "rival", "student"])
def test_what_a_partner_expects_of_images_is_part_of_the_run(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = saved_teacher()
    models.save(teacher, "p.safetensors")
    ROLES[role]("p.safetensors", out="run")
    models.save(replace(teacher, card=replace(teacher.card, mean=(0.1,) * 3)), "p.safetensors")
    with pytest.raises(RunError, match=r"was made with .*0\.4.*, which is now .*0\.1"):
        ROLES[role]("p.safetensors", out="run")


def test_a_rival_s_classes_stand_in_the_same_order(digits: Classifier, tmp_path: Path) -> None:
    turned = replace(digits.card, class_names=digits.card.class_names[::-1])
    models.save(replace(digits, card=turned), tmp_path / "s.safetensors")
    rival = {"method": "adaptive", "student": str(tmp_path / "s.safetensors")}
    with pytest.raises(ModelError, match=r"--student .*: its classes are in another order"):
        invert(invert_config(**rival, out=str(tmp_path / "run")))


def test_a_rival_sorts_into_as_many_classes(digits: Classifier, tmp_path: Path) -> None:
    names = tuple("abcd")
    card = replace(network(classes=4).card, class_names=names)
    models.save(replace(network(classes=4), card=card), tmp_path / "s.safetensors")
    rival = {"method": "adaptive", "student": str(tmp_path / "s.safetensors")}
    line = r"^--student .*resnet8 has 4 classes \(a, b, c, …\), but the teacher .*resnet14 has 10$"
    with pytest.raises(ModelError, match=line):
        invert(invert_config(**rival, out=str(tmp_path / "run")))


def test_a_student_of_the_teacher_s_architecture_is_told_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_teacher()
    models.save(network((3, 32, 32), classes=2), "s.safetensors")
    name = "timm:cifar_resnet8"
    line = f"^--student {name} has 2 classes, but the teacher {name} has 10$"
    with pytest.raises(ModelError, match=line):
        distilled(student="s.safetensors")


def test_a_verifier_sorts_into_the_same_classes(digits: Classifier, tmp_path: Path) -> None:
    models.save(network(classes=9), tmp_path / "v.safetensors")
    with pytest.raises(
        ModelError, match=r"--verifier .* has 9 classes, but the teacher .*resnet14 has 10$"
    ):
        invert(invert_config(verifier=str(tmp_path / "v.safetensors"), out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_rival_takes_images_of_the_same_size(tmp_path: Path) -> None:
    models.save(network((1, 20, 20)), tmp_path / "s.safetensors")
    rival = {"method": "adaptive", "student": str(tmp_path / "s.safetensors")}
    line = r"--student .*resnet8 takes images of 1x20x20, but the teacher .*resnet14 of 1x16x16$"
    with pytest.raises(ModelError, match=line):
        invert(invert_config(**rival, out=str(tmp_path / "run")))


class Watcher(nn.Module):
    """Keeps what it is shown, and sees class 2 in all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []
        self.answer = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return self.answer.expand(len(x), 3)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 16, 16), (3, 24, 20)), ((3, 50, 40), (1, 24, 20))], ids=str
)
def test_a_verifier_sees_the_images_in_its_own_size_and_channels(
    shape: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    mean, std = (0.1, 0.2, 0.3)[: size[0]], (0.5, 0.5, 0.4)[: size[0]]
    judge = Classifier.of(
        Watcher(), name="watcher", num_classes=3, input_size=size, mean=mean, std=std
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, *shape), dtype=torch.uint8, generator=generator)
    verifiers = Verifiers({"judge": judge})
    with verifiers.on("cpu"):
        assert verifiers.predictions(images)["judge"].tolist() == [2] * 70
    grey = images.float().mean(1, keepdim=True) / 255
    resized = interpolate(grey, (24, 20), mode="bilinear", antialias=True)
    middle, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    assert torch.allclose(torch.cat(judge.module.shown), (resized - middle) / scale, atol=1e-5)
