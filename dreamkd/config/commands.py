"""The settings of `invert` and `distill`, and all commands in the order of the help page."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkd.config.assessment import EvalConfig, InspectConfig
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
    DATA,
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
        None, group=DATA, help="train on these shards instead of synthesising (recipe offline)"
    )
    eval_data: str | None = option(
        None,
        group=DATA,
        identity=False,
        help="labelled images to measure teacher and student on; they train nothing",
    )
    eval_every: int | str = option(
        "auto",
        group=DATA,
        minimum=1,
        maximum=MOST_IMAGES,
        auto="ten times as it learns",
        identity=False,
        help="rounds between two measurements of the student on --eval-data; without rounds, "
        "hundredths of the steps",
    )
    noise_baseline: str = option(
        "auto",
        group=DATA,
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
