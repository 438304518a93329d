"""Commands from end to end on the bundled teacher, and how their results look."""

import json
import re
import sys
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from dreamkd import inspection, models
from dreamkd.cli import main, tables
from dreamkd.cli.commands import evaluate
from dreamkd.config import DistillConfig, EvalConfig
from dreamkd.distillation import Distillation
from dreamkd.events import Event, Progress
from dreamkd.models import Card, Classifier

TEACHER = "digits_resnet14"


def card(**given: object) -> Card:
    values = {
        "architecture": "our[red]net\x1b[2J",
        "weights": "file a.pt",
        "source": "a.pt",
        "num_classes": 2,
        "input_size": (1, 4, 4),
        "mean": (0.5,),
        "std": (0.25,),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "parameters": 1234567,
        "pretrained": True,
    }
    return Card(**{**values, **given})  # type: ignore[arg-type]


def test_inspect_shows_layers_model_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TEACHER]) == 0
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert lines[0].split() == ["layer", "kind", "channels", "input", "mean", "variance"]
    assert lines[2].split()[:4] == ["bn1", "BatchNorm2d", "16", "16x16"]
    assert len([line for line in lines if "BatchNorm2d" in line]) == 13  # 1 + 2 * 6 blocks
    assert "parameters  172,218" in lines
    assert lines[-1] == "verdict     invertible: 13 batch-norm layers"
    assert streams.err == f"{TEACHER}: timm:cifar_resnet14, as its metadata says\n"


def test_inspect_compares_images_with_what_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TEACHER, "--data", "sklearn:digits", "--batch-size", "300"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "layer",
        "kind",
        "channels",
        "input",
        "mean",
        "variance",
        "distance",
    ]
    shares = [float(line.split()[-1]) for line in lines[2:15]]
    (level,) = (line for line in lines if line.startswith("R_feature"))
    found = re.fullmatch(
        r"R_feature +([\d.]+) ± [\d.]+ of 600 images, 2 batches of 300 \(.*chance\)", level
    )
    assert found
    assert sum(shares) == pytest.approx(float(found[1]), rel=1e-2)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("256", "512 of 600 images, 2 batches of 256"),
        ("599", "599 of 600 images, one batch"),
        ("600", "600 images, one batch"),
        ("50", "500 of 600 images, 10 batches of 50"),
    ],
)
def test_inspect_says_of_how_many_images_it_compares(
    size: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["inspect", TEACHER, "--data", "sklearn:digits", "--batch-size", size]
    assert main(argv) == 0
    assert f" of {said} (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "heads", "row"),
    [
        # 12 + 11 + 8 + 5 + 15 + 11 for the cells; a space and two between, and one at either side
        (79, "layer kind channels input mean variance", "BatchNorm2d         16   16x16   -0.055"),
        (78, "layer kind channels input mean variance", "BatchNorm2d       16 16x16 -0.055"),
        (69, "layer kind channels input mean variance", "BatchNorm2d       16 16x16 -0.055"),
        (60, "layer channels input mean variance", "bn1                16 16x16 -0.055"),
        (52, "layer channels mean variance", "bn1                16 -0.055 .. 0.049 0.21 .. 1.5"),
    ],
)
def test_what_tells_least_of_layers_gives_way_on_a_narrow_terminal(
    width: int, heads: str, row: str, digits: Classifier
) -> None:
    page = StringIO()
    layers, _ = tables.inspection(inspection.inspect(digits))
    Console(file=page, width=width).print(layers)
    lines = page.getvalue().splitlines()
    assert lines[1].split() == heads.split()
    assert row in lines[3]
    assert len([line for line in lines if line.strip()]) == 2 + 13  # no layer takes two
    assert max(map(len, lines)) <= width


def test_what_is_long_of_layers_breaks_and_numbers_do_not(digits: Classifier) -> None:
    found = inspection.inspect(digits)
    odd = [replace(layer, name="stage." * 9, dead_channels=3) for layer in found.layers]
    page = StringIO()
    layers, _ = tables.inspection(replace(found, layers=tuple(odd)))
    Console(file=page, width=60).print(layers)
    assert "16 -0.055 .. 0.049 0.21 .. 1.5" in page.getvalue()


def test_inspect_without_weights_shows_no_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "resnet18", "--no-pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "kind", "channels", "input"]
    assert lines[-1].startswith("verdict     invertible once trained: 20 batch-norm layers")


def test_inspect_without_batch_norm_shows_what_there_is_and_is_4(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", "vit_b_16", "--no-pretrained", "--json"]) == 4
    streams = capsys.readouterr()
    assert json.loads(streams.out)["norms"] == {"LayerNorm": 25}
    assert streams.err.splitlines()[-1].startswith("dreamkd: error: torchvision:vit_b_16 ")
    assert "25 LayerNorm" in streams.err


def test_layers_that_are_broken_repeated_or_never_run_are_noted() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    network[0].running_var.fill_(-1)  # type: ignore[union-attr,operator]
    network[1].running_mean.fill_(0.5)  # type: ignore[union-attr,operator]
    layers = (network[0], network[1], network[1])
    network.forward = lambda x: [x := layer(x) for layer in layers][-1]  # type: ignore[method-assign]
    found = inspection.inspect(Classifier(network.eval(), card()))
    lines = tables.text(*tables.inspection(found)).splitlines()
    rows = [line.split(maxsplit=10) for line in lines[2:5]]
    assert [row[-1] for row in rows] == [
        "variance is negative in 1 channels",
        "runs 2 times",
        "never runs, untrained",
    ]
    assert "model       our[red]net\\x1b[2J" in lines
    assert lines[-1].startswith("verdict     not, because 1 of 3 batch-norm layers are broken")


def test_eval_prints_measures_and_the_table_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", TEACHER, "--data", "sklearn:digits", "--device", "cpu", "--threads", "1"]
    assert main([*argv, "--teacher", TEACHER, "--per-class"]) == 0
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert lines[0].split() == ["class", "images", "top-1", "%"]
    assert [line.split()[0] for line in lines[2:12]] == [str(digit) for digit in range(10)]
    assert lines[-1] == "agreement  100.00 %"
    assert "cpu, fp32, 1 thread" in streams.err
    assert main([*argv, "--json", "--quiet"]) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    found = json.loads(streams.out)
    assert found["model"]["architecture"] == "timm:cifar_resnet14"
    assert found["count"] == sum(int(line.split()[1]) for line in lines[2:12])
    assert (found["device"], found["precision"], found["threads"]) == ("cpu", "fp32", 1)
    assert "per_class" not in found
    assert f"top-1      {found['top1']:.2f} %" in lines


def test_eval_takes_interpolation_and_crop_from_the_user(
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = []
    for more in ([], ["--crop-pct", "0.5"], ["--crop-pct", "0.5", "--interpolation", "nearest"]):
        assert main(["eval", TEACHER, "--data", "sklearn:digits", "--json", *more]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert len(set(losses)) == 3


def test_eval_of_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", TEACHER, "--data", str(tmp_path / "keine Bilder")]) == 5
    assert "keine Bilder" in capsys.readouterr().err.splitlines()[-1]


def test_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", TEACHER, "--data", "sklearn:digits", "--device", "gpu"]) == 2
    line = "dreamkd: error: --device: 'gpu' is not one of auto, cpu, cuda, cuda:N\n"
    assert capsys.readouterr().err == line


def test_facts_of_nested_values() -> None:
    result = {"images": 3, "top_1": 12.345678, "of": {"a_b": None, "c": [1, 2.5]}, "done": True}
    assert tables.text(tables.facts(result)).splitlines() == [
        "images   3",
        "top 1    12.35",
        "of: a_b  -",
        "of: c    1, 2.5",
        "done     yes",
    ]


def test_names_of_networks_are_shown_as_they_are() -> None:
    result = {"verifiers": {"digits_resnet14": 7.0, "five_seconds": 8.0}}
    assert tables.text(tables.facts(result)).splitlines() == [
        "verifiers: digits_resnet14  7.00 %",
        "verifiers: five_seconds     8.00 %",
    ]


def test_facts_have_units() -> None:
    result = {"teacher_top1": 20.0, "verifiers": {"a_b": 7}, "seconds": 61.2, "kd_seconds": 0}
    assert tables.text(tables.facts(result)).splitlines() == [
        "teacher top-1   20.00 %",
        "verifiers: a_b  7.00 %",
        "work            1 min 01 s",
        "kd              0.0 s",
    ]


def test_tables_are_plain_ascii_where_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), encoding="latin-1"))
    network = nn.Sequential(nn.BatchNorm2d(1)).eval()
    found = inspection.inspect(Classifier(network, card(architecture="a")))
    assert tables.text(*tables.inspection(found)).isascii()


def test_the_table_of_a_distillation_sets_student_beside_teacher_and_noise() -> None:
    config = DistillConfig(teacher="t.pt", student="net")
    found = Distillation(
        out="runs/x",
        student="runs/x/student.safetensors",
        teacher_top1=98.5,
        student_top1=97.25,
        noise_top1=50.0,
        agreement=99.0,
        best_top1=97.5,
        best_step=10,
        eval_source="digits",
        images=40,
        image_source="made from t.pt",
        steps=12,
        data_free=True,
        synthesis_seconds=1.0,
        student_seconds=2.0,
        seconds=3.0,
        curve=[],
    )
    lines = tables.text(*tables.distillation(found, config)).splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[2:5]]
    assert rows == [
        ["teacher t.pt", "its own data", "98.50"],
        ["student net", "made from t.pt", "97.25", "97.50"],
        ["student net", "noise, as many images and steps", "50.00"],
    ]
    assert "data free     yes" in lines
    assert lines[-1].split() == ["work", "3.0", "s"]
    measured = ("teacher_top1", "student_top1", "noise_top1", "agreement", "best_step")
    silent = replace(found, **dict.fromkeys(measured))
    said = tables.text(*tables.distillation(silent, config))
    assert not re.search("learned from|agreement|best step", said)


def test_eval_computes_as_asked() -> None:
    config = EvalConfig(model=TEACHER, data="sklearn:digits", device="cpu", threads=1)
    seen: list[Event] = []
    losses = [
        evaluate(
            replace(config, precision=precision, batch_size=100),
            on_event=seen.append,
            should_stop=lambda: False,
        ).document["loss"]
        for precision in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert len([event for event in seen if isinstance(event, Progress)]) == 12


def test_what_was_said_of_a_model_once_is_kept_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(models.load(TEACHER).module.state_dict(), "t.pt")
    Path("names.txt").write_text("\n".join(f"digit {k}" for k in range(10)))
    said = ["--input-size", "16", "--mean", "0.3", "--std", "0.35", "--class-names", "names.txt"]
    assert main(["inspect", "t.pt", *said, "--save", "kept.safetensors"]) == 0
    assert "written: kept.safetensors" in capsys.readouterr().err
    assert main(["inspect", "t.pt", "--save", "t.pt"]) == 2
    assert "--save t.pt: is there already" in capsys.readouterr().err
    assert main(["inspect", "t.pt", *said, "--save", "no/kept.safetensors"]) == 6
    assert "no/kept.safetensors: no is no folder" in capsys.readouterr().err
    assert main(["inspect", "kept.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert (found["input_size"], found["mean"], found["std"]) == ([1, 16, 16], [0.3], [0.35])
    assert found["class_names"][7] == "digit 7"
    short = ["--per-class", "2", "--image-steps", "1", "--out", "run", "--format", "folder"]
    assert main(["invert", "kept.safetensors", "--classes", "digit 7", *short, "--quiet"]) == 0
    assert len([*Path("run/images/digit_7").iterdir()]) == 2


@pytest.mark.parametrize("name", ["n" * 300, f"{'n' * 300}/kept.safetensors"])
def test_a_file_that_cannot_be_looked_for_is_refused_before_the_work(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", TEACHER, "--save", name]) == 6
    line = f"{name}: cannot be looked for (File name too long); choose another --save"
    assert capsys.readouterr().err == f"dreamkd: error: {line}\n"
