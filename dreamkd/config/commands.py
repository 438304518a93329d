"""The settings of each command. Their order is the order of the help page."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkd.config.images import (
    BY_PRESET,
    COMPETITION,
    IMAGES,
    MOST_IMAGES,
    CompetitionConfig,
    ImageConfig,
)
from dreamkd.config.options import check_bases, option, refuse_idle
from dreamkd.config.shared import (
    MODEL,
    RUN,
    LimitConfig,
    ModelConfig,
    OutputConfig,
    RuntimeConfig,
    SeedConfig,
)
from dreamkd.config.student import StudentConfig
from dreamkd.errors import ConfigError

_DATA = "Data"

#: How a picture is resized: what cards of networks may say, and the command line.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ModelConfig, OutputConfig):
    """List the batch-norm layers of a model and say whether it can be inverted."""

    model: str = option(
        group=MODEL, argument=True, help="torchvision or timm name, bundled teacher, or checkpoint"
    )
    no_pretrained: bool = option(
        False, group=MODEL, help="look at the architecture alone, without weights or download"
    )
    data: str | None = option(
        None,
        group=_DATA,
        help="images, given as to eval, whose statistics are compared with the stored ones, layer "
        "by layer; labels do not matter",
    )
    batch_size: int = option(
        256, group=_DATA, minimum=2, help="images of --data in each of at most ten full batches"
    )
    save: str | None = option(
        None,
        group=MODEL,
        help="also write it to this file (safetensors), with its architecture, input size and "
        "normalisation, so that no command needs an option to read it",
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        check_bases(InspectConfig, self)
        for option_, given in (("--save", self.save), ("--data", self.data)):
            if given is not None and self.no_pretrained:
                raise ConfigError(f"{option_} has no effect with --no-pretrained")
        if self.data is None and self.batch_size != InspectConfig.batch_size:
            raise ConfigError("--batch-size has no effect without --data")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ModelConfig, RuntimeConfig, OutputConfig):
    """Measure a model on labelled images: top-1, top-5, loss, agreement with a teacher."""

    model: str = option(
        group=MODEL, argument=True, help="torchvision or timm name, bundled teacher, or checkpoint"
    )
    data: str = option(
        group=_DATA,
        help="folder of class folders, tar(s) of them, WebDataset tars, run folder, "
        "torchvision:NAME:ROOT[:test|train] or sklearn:digits[:test|train]",
    )
    precision: str = option(
        "fp32",
        group=RUN,
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of matrix products; fp32 as published figures are, and those of distill",
    )
    teacher: str | None = option(
        None, group=MODEL, help="second model, whose top-1 predictions are compared"
    )
    interpolation: str | None = option(
        None, group=_DATA, choices=INTERPOLATIONS, help="of the resize, else the model's own"
    )
    crop_pct: float | None = option(
        None,
        group=_DATA,
        above=0,
        maximum=1,
        help="size / resized short side, else the model's own",
    )
    batch_size: int = option(256, group=_DATA, minimum=1, identity=False, help="images at once")
    per_class: bool = option(False, group=_DATA, identity=False, help="add a table of each class")

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        check_bases(EvalConfig, self)


@dataclass(frozen=True, kw_only=True)
class InvertConfig(
    ModelConfig,
    ImageConfig,
    CompetitionConfig,
    RuntimeConfig,
    SeedConfig,
    LimitConfig,
    OutputConfig,
):
    """Turn a trained classifier into images (DeepDream, DeepInversion, Adaptive DeepInversion)."""

    model: str = option(
        group=MODEL, argument=True, help="torchvision or timm name, bundled teacher, or checkpoint"
    )
    method: str = option(
        "deepinversion",
        group=IMAGES,
        choices=("deepdream", "deepinversion", "adaptive"),
        help="Eq. 2 (no statistics), Eq. 7, or Eq. 9 against --student",
    )
    student: str | None = option(
        None,
        group=MODEL,
        help="of --method adaptive: the model that images should disagree with, as it is",
    )
    classes: str = option(
        "all", group=IMAGES, help="all, numbers and ranges (0-9,15) or class names"
    )
    per_class: int = option(
        10,
        group=IMAGES,
        minimum=1,
        maximum=MOST_IMAGES,
        identity=False,
        help="images of each class; raising it later, with the same --out, keeps what is there",
    )
    class_weights: str | None = option(
        None,
        group=IMAGES,
        help="images of a class per image of the others: 3:2,cat:0.5 (fractions are rounded down)",
    )
    verifier: tuple[str, ...] = option(
        (),
        group=IMAGES,
        help="independent model(s), comma-separated, whose agreement with the labels is recorded",
    )
    format: str = option(
        "shards",
        group=RUN,
        choices=("shards", "folder"),
        help="of the images: WebDataset tars, or images/CLASS/KEY.png as ImageFolder reads them",
    )
    out: str | None = option(
        None, group=RUN, identity=False, help="run folder; else runs/invert-MODEL-N, N counting up"
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        check_bases(InvertConfig, self)
        refuse_idle(self)
        if self.method == "adaptive" and self.student is None:
            raise ConfigError("--method adaptive: needs the --student that images disagree with")

    def idle(self) -> dict[str, str]:
        """Options that have no effect with the others as they are, and what makes them so."""
        idle, method = super().idle(), f"--method {self.method}"
        if self.method == "deepdream":
            names = ("r_feature", "r_feature_scale", "refine_r_feature", "first_bn")
            idle |= dict.fromkeys((*names, "bn_momentum", "bn_prior"), method)
        if self.method != "adaptive":
            idle |= dict.fromkeys(("student", *COMPETITION), method)
        elif self.competition == 0:
            idle |= dict.fromkeys(COMPETITION[1:], "--competition 0")
        return idle


@dataclass(frozen=True, kw_only=True)
class DistillConfig(
    ModelConfig,
    ImageConfig,
    CompetitionConfig,
    StudentConfig,
    RuntimeConfig,
    SeedConfig,
    LimitConfig,
    OutputConfig,
):
    """Train a student from a teacher without the teacher's data."""

    teacher: str = option(
        group=MODEL, help="torchvision or timm name, bundled teacher, or checkpoint"
    )
    student: str = option(
        group=MODEL,
        help="name of the student's architecture, trained from scratch; or a checkpoint or "
        "bundled network to go on from",
    )
    data: str | None = option(
        None, group=_DATA, help="train on these shards instead of synthesising (recipe offline)"
    )
    eval_data: str | None = option(
        None,
        group=_DATA,
        identity=False,
        help="labelled images to measure teacher and student on; they train nothing",
    )
    eval_every: int | str = option(
        "auto",
        group=_DATA,
        minimum=1,
        maximum=MOST_IMAGES,
        auto="ten times as it learns",
        identity=False,
        help="rounds between two measurements of the student on --eval-data; without rounds, "
        "hundredths of the steps",
    )
    noise_baseline: str = option(
        "auto",
        group=_DATA,
        identity=False,
        choices=("auto", "on", "off"),
        help="train the same student on noise for the same steps; auto: with --eval-data, "
        "for inputs of up to 64 px, without --budget-minutes",
    )
    first_batches: int | str = option(
        "auto",
        group=IMAGES,
        minimum=1,
        maximum=MOST_IMAGES,
        auto=BY_PRESET,
        help="image batches before the competition begins",
    )
    rounds: int | str = option(
        "auto",
        group=IMAGES,
        minimum=0,
        maximum=MOST_IMAGES,
        auto=BY_PRESET,
        help="further batches, each against the student of its time",
    )
    out: str | None = option(
        None,
        group=RUN,
        identity=False,
        help="run folder; else runs/distill-TEACHER-N, N counting up",
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        check_bases(DistillConfig, self)
        refuse_idle(self)
        if self.data and self.recipe not in ("auto", "offline"):
            raise ConfigError(f"--recipe {self.recipe}: makes its own images; leave out --data")
        if not self.data and (self.store_labels or self.labels):
            raise ConfigError("--store-labels, --labels: labels are of given images; give --data")
        if self.labels and self.budget_minutes:
            raise ConfigError("--labels: are of so many --steps; leave out --budget-minutes")
        if self.store_labels and self.labels:
            raise ConfigError("--store-labels: would only copy those of --labels")
        if self.recipe == "offline" and not self.data:
            raise ConfigError("--recipe offline: needs images to train on; give --data")
        given = "auto" not in (self.recipe, self.images) and self.recipe != "offline"
        if given and (self.images == "generator") != (self.recipe == "generator"):
            raise ConfigError(f"--recipe {self.recipe} does not go with --images {self.images}")
        if self.noise_baseline == "on" and not self.eval_data:
            raise ConfigError("--noise-baseline: is measured on --eval-data, which is missing")

    def idle(self) -> dict[str, str]:
        """Options that have no effect with the others as they are: with --data, synthesis."""
        idle = dict.fromkeys(("rounds", "steps"), "--budget-minutes") if self.budget_minutes else {}
        idle |= {"momentum": "--optimizer adamw"} if self.optimizer == "adamw" else {}
        idle |= {} if self.hard_labels else {"label_smoothing": "--hard-labels 0"}
        idle |= {} if self.eval_data else {"eval_every": "--eval-data left out"}
        if self.rounds == 0:
            idle |= dict.fromkeys(COMPETITION, "--rounds 0")
        elif self.competition == 0:
            idle |= dict.fromkeys(COMPETITION[1:], "--competition 0")
        if not self.data:
            return super().idle() | idle
        names = (*ImageConfig.__dataclass_fields__, *COMPETITION, "first_batches", "rounds")
        return idle | {name: "--data" for name in names if name != "preset"}


#: Command -> its settings; the command line and docs/cli.md are generated from this table.
COMMANDS: dict[str, type] = {
    "inspect": InspectConfig,
    "invert": InvertConfig,
    "distill": DistillConfig,
    "eval": EvalConfig,
}
