"""Which number stands where in a table: results of which no two values are the same."""

import re
from dataclasses import replace

from rich.console import RenderableType

from dreamkd.cli import tables
from dreamkd.evaluation import ClassResult, Evaluation
from dreamkd.inspection import Comparison, Inspection, LayerReport, Summary
from dreamkd.models import Card

EVALUATION = Evaluation(
    top1=71.25,
    top5=93.5,
    loss=0.98765,
    count=1234,
    per_class=(
        ClassResult(name="cat", count=1000, top1=70.5),
        ClassResult(name="dog", count=234, top1=74.375),
    ),
    agreement=88.75,
    source="pictures",
)

CARD = Card(
    architecture="timm:net",
    weights="file a.pt",
    source="a.pt",
    num_classes=21841,
    input_size=(3, 224, 192),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    interpolation="bilinear",
    crop_pct=0.875,
    parameters=1234567,
    pretrained=True,
)

COMPARISON = Comparison(
    source="pictures",
    images=2750,
    batches=9,
    batch_size=300,
    r_feature=12.34567,
    spread=0.98765,
    r_feature_chance=5.67891,
    layers={"bn1": 7.5, "bn2": 2.25},
)

FIRST = LayerReport(
    name="bn1",
    kind="BatchNorm2d",
    channels=16,
    resolution=(8, 9),
    calls=1,
    running_mean=Summary(-1.5, 0.25, 2.5),
    running_var=Summary(0.125, 0.75, 3.5),
    distance=7.5,
    untrained=False,
    broken="",
    dead_channels=1,
)

SECOND = replace(FIRST, name="bn2", channels=32, calls=2, distance=2.25, dead_channels=0)

INSPECTION = Inspection(
    card=CARD,
    layers=(FIRST, SECOND),
    norms={"LayerNorm": 4, "GroupNorm": 6},
    obstacle="",
    verdict="invertible: 2 batch-norm layers",
    compared=COMPARISON,
)


def rows(*renderables: RenderableType) -> list[list[str]]:
    """The cells of every line but that under a table's head."""
    lines = [line for line in tables.text(*renderables).splitlines() if re.search(r"\w", line)]
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_an_evaluation() -> None:
    measures = [
        ["images", "1234"],
        ["top-1", "71.25 %"],
        ["top-5", "93.50 %"],
        ["loss", "0.9877"],
        ["agreement", "88.75 %"],
    ]
    classes = [["class", "images", "top-1 %"], ["cat", "1000", "70.50"], ["dog", "234", "74.38"]]
    assert rows(*tables.evaluation(EVALUATION, per_class=True)) == classes + measures
    alone = replace(EVALUATION, agreement=None)
    assert rows(*tables.evaluation(alone, per_class=False)) == measures[:-1]


def test_an_inspection() -> None:
    assert rows(*tables.inspection(INSPECTION)) == [
        ["layer", "kind", "channels", "input", "mean", "variance", "distance", "note"],
        [
            *("bn1", "BatchNorm2d", "16", "8x9", "-1.5 .. 2.5", "0.12 .. 3.5", "7.5"),
            "variance is zero in 1 channels",
        ],
        [
            *("bn2", "BatchNorm2d", "32", "8x9", "-1.5 .. 2.5", "0.12 .. 3.5", "2.25"),
            "runs 2 times",
        ],
        ["model", "timm:net"],
        ["weights", "file a.pt"],
        ["parameters", "1,234,567"],
        ["classes", "21,841"],
        ["input", "3x224x192, bilinear, crop 0.875"],
        ["mean", "0.1, 0.2, 0.3"],
        ["std", "0.4, 0.5, 0.6"],
        ["other norms", "4 LayerNorm, 6 GroupNorm"],
        ["R_feature", "12.35 ± 0.988 of 2,700 of 2,750 images, 9 batches of 300 (5.68 by chance)"],
        ["verdict", "invertible: 2 batch-norm layers"],
    ]


def test_what_is_not_there_is_not_shown() -> None:
    bare = replace(SECOND, resolution=None, calls=0, running_mean=None, running_var=None)
    found = replace(
        INSPECTION,
        card=replace(CARD, data_free=True),
        layers=(bare,),
        norms={},
        compared=replace(COMPARISON, batches=1),
    )
    shown = rows(*tables.inspection(found))
    assert shown[:2] == [
        ["layer", "kind", "channels", "input", "distance", "note"],
        ["bn2", "BatchNorm2d", "32", "-", "2.25", "never runs"],
    ]
    assert ["weights", "file a.pt, made without real images"] in shown
    assert ["R_feature", "12.35 of 300 of 2,750 images, one batch (5.68 by chance)"] in shown
    assert "other norms" not in [row[0] for row in shown]
    rest = replace(found, layers=(replace(FIRST, dead_channels=0),), compared=None)
    shown = rows(*tables.inspection(rest))
    assert shown[0] == ["layer", "kind", "channels", "input", "mean", "variance"]
    assert "R_feature" not in [row[0] for row in shown]
