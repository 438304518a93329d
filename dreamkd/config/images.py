"""How images are synthesised: the settings that `invert` and `distill` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamkd.config.options import AUTO, option
from dreamkd.config.presets import PRESETS
from dreamkd.errors import ConfigError

IMAGES, LOSS = "Images", "Image loss"
BORDERS = ("wrap", "black", "mirror")
BY_PRESET = "by preset and input size"
MOST_IMAGES, MOST_STEPS = 65_536, 10**9  # above, a slip of the hand


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How one batch of images is synthesised. `auto` follows from the preset and the input size."""

    preset: str = option(
        "fast",
        group=IMAGES,
        choices=tuple(PRESETS),
        help="where every auto below comes from: ours, the settings of the authors' scripts, or "
        "the paper's",
    )
    images: str = option(
        "auto",
        group=IMAGES,
        choices=("auto", "pixels", "pyramid", "generator"),
        help="what is optimised: pixels, a sum of resolutions, or a generator that learns from "
        "batch to batch; auto is pixels, but for the recipe generator",
    )
    start: str = option(
        "auto",
        group=IMAGES,
        choices=("auto", "white", "pink", "natural"),
        help="noise that pixels start from; pink has the spectrum of photographs, 1 / f, natural "
        "noise also their colours, and another brightness and contrast in each image",
    )
    image_steps: int | str = option(
        "auto",
        group=IMAGES,
        minimum=1,
        maximum=MOST_STEPS,
        auto=BY_PRESET,
        help="optimisation steps per batch",
    )
    image_batch_size: int | str = option(
        "auto",
        group=IMAGES,
        minimum=2,
        maximum=MOST_IMAGES,
        auto=BY_PRESET,
        help="largest number of images per batch",
    )
    image_chunk: int | str = option(
        "auto",
        group=IMAGES,
        minimum=1,
        maximum=MOST_IMAGES,
        auto="the whole batch, or what fits into memory",
        help="images differentiated at once; the gradient stays that of the whole batch",
    )
    stages: tuple[int, ...] = option(
        (),
        group=IMAGES,
        minimum=0,
        maximum=MOST_STEPS,
        help="relative lengths of the resolutions, the last full, each one before it half the "
        "next: 2,1 spends two thirds of the steps at half resolution; else by preset and size",
    )
    image_lr: float | str = option(
        "auto", group=IMAGES, above=0, auto=BY_PRESET, help="Adam's rate, in normalised units"
    )
    image_beta1: float | str = option(
        "auto", group=IMAGES, minimum=0, maximum=0.9999, auto=BY_PRESET, help="Adam's beta 1"
    )
    image_beta2: float | str = option(
        "auto", group=IMAGES, minimum=0, maximum=0.99999, auto=BY_PRESET, help="Adam's beta 2"
    )
    image_schedule: str = option(
        "auto",
        group=IMAGES,
        choices=("auto", "cosine", "constant"),
        help="of the rate, after the warm-up",
    )
    image_warmup: int | str = option(
        "auto",
        group=IMAGES,
        minimum=0,
        auto=BY_PRESET,
        help="steps in which the rate rises linearly, at most half of those of a stage",
    )
    jitter: int | str = option(
        "auto",
        group=IMAGES,
        minimum=0,
        maximum=4096,
        auto=BY_PRESET,
        help="largest shift per step, in pixels",
    )
    jitter_border: str = option(
        "auto",
        group=IMAGES,
        choices=("auto", *BORDERS),
        help="what a shift brings in: the other side, black, or the image mirrored; auto: of the "
        "latter two what the statistics that are matched fit in a short trial, for inputs of 32 to "
        "63 px with --preset fast, else wrap",
    )
    flip: str = option(
        "auto",
        group=IMAGES,
        choices=("auto", "on", "off"),
        help="mirror half of the views; auto never mirrors grey images (digits, letters)",
    )
    crop: float | str = option(
        "auto",
        group=IMAGES,
        above=0,
        maximum=1,
        auto=BY_PRESET,
        help="smallest area of random resized crops at the end of their curriculum; 1 for none",
    )
    clip: str = option(
        "auto",
        group=IMAGES,
        choices=("auto", "on", "off"),
        help="keep pixels legal after each step",
    )
    refine_steps: int | str = option(
        "auto",
        group=IMAGES,
        minimum=0,
        maximum=MOST_STEPS,
        auto="20 for a generator, else 0",
        help="steps of the pixels by themselves, once a generator or a pyramid has made them",
    )
    refine_lr: float | str = option(
        "auto",
        group=IMAGES,
        above=0,
        auto="0.1",
        help="Adam's rate in those steps, at first; it falls to zero",
    )
    keep: str = option(
        "last",
        group=IMAGES,
        choices=("last", "best"),
        help="of each image the last version, or the best by its own terms at full resolution",
    )
    ce: float | str = option(
        "auto", group=LOSS, minimum=0, auto=BY_PRESET, help="weight of the classification loss L"
    )
    r_feature: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        auto="from --r-feature-scale, or by preset",
        symbol="alpha_f",
        help="weight of R_feature, the batch-norm statistics",
    )
    r_feature_scale: float | str = option(
        "auto",
        group=LOSS,
        above=0,
        auto=BY_PRESET,
        help="--r-feature becomes this times the root of the classification loss's gradient over "
        "R_feature's, measured once on noise",
    )
    refine_r_feature: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        auto="of a generator's images from --r-feature-scale, else --r-feature",
        help="weight of R_feature while pixels are refined",
    )
    bn_momentum: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        maximum=0.999,
        auto=BY_PRESET,
        help="weight of former batches' statistics in R_feature; above 0, made in order",
    )
    bn_prior: str | None = option(
        None,
        group=LOSS,
        help="model whose statistics R_feature matches, for a model that has none of its own",
    )
    first_bn: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        auto=BY_PRESET,
        help="multiplier of the first batch-norm layer in R_feature",
    )
    tv_l1: float | str = option(
        "auto", group=LOSS, minimum=0, auto=BY_PRESET, help="weight of the total variation, l1"
    )
    tv_l2: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        auto=BY_PRESET,
        symbol="alpha_tv",
        help="weight of the total variation, l2",
    )
    l2: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        auto=BY_PRESET,
        symbol="alpha_l2",
        help="weight of the norm",
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        warmup, steps = self.image_warmup, self.image_steps
        if isinstance(warmup, int) and isinstance(steps, int) and warmup > steps:
            raise ConfigError(f"--image-warmup: {warmup} is above --image-steps {steps}")
        if self.stages and not self.stages[-1]:
            raise ConfigError("--stages: the last one, at full resolution, must not be 0")
        if len(self.stages) > 8:
            raise ConfigError(f"--stages: at most 8, not {len(self.stages)}")

    def idle(self) -> dict[str, str]:
        """Options that have no effect with the others as they are, and what makes them so."""
        idle = dict[str, str]()
        refining = ("refine_lr", "refine_r_feature")
        if self.images == "pixels":
            idle |= dict.fromkeys(("refine_steps", *refining), "--images pixels")
        elif self.refine_steps == 0:
            idle |= dict.fromkeys(refining, "--refine-steps 0")
        if self.r_feature != "auto":
            if self.images not in ("auto", "generator") or "refine_r_feature" in idle:
                idle["r_feature_scale"] = "--r-feature"
            elif self.refine_r_feature != "auto":
                idle["r_feature_scale"] = "--r-feature and --refine-r-feature"
        if self.images not in ("auto", "pixels"):
            idle["start"] = f"--images {self.images}"
        if self.jitter == 0:
            idle["jitter_border"] = "--jitter 0"
        if self.images == "generator":
            idle["clip"] = "--images generator, whose images are always legal"
        for name, nothing in self.unmatched().items():
            if getattr(self, name) not in (AUTO, nothing):
                idle[name] = "--r-feature 0"
        return idle

    def border(self) -> str:
        """What a shift brings in; `wrap` where none was decided, since nothing is shifted."""
        return "wrap" if self.jitter_border == AUTO else self.jitter_border

    def unmatched(self) -> dict[str, Any]:
        """Options that do nothing since no statistics are matched, and their neutral values."""
        if self.r_feature != 0:
            return {}
        followed = self.images == "pyramid" and self.refine_r_feature == AUTO
        refined = self.images != "pixels" and 0 not in (self.refine_steps, self.refine_r_feature)
        if followed or not refined:
            return {"bn_momentum": 0.0, "first_bn": 1.0, "bn_prior": None}
        return {"bn_momentum": 0.0}  # pixels that are refined see no former batches


@dataclass(frozen=True, kw_only=True)
class CompetitionConfig:
    """How much images seek the disagreement of teacher and student."""

    competition: float | str = option(
        "auto",
        group=LOSS,
        minimum=0,
        auto=BY_PRESET,
        symbol="alpha_c",
        help="weight of the competition R_c",
    )
    competition_loss: str = option(
        "auto",
        group=LOSS,
        choices=("auto", "js", "kl"),
        help="js is R_c = 1 - JS(teacher, student) of Eq. 8; kl is -KL(teacher, student) where "
        "both name the same class, as with generators",
    )
    competition_temperature: float | str = option(
        "auto",
        group=LOSS,
        above=0,
        auto=BY_PRESET,
        symbol="tau_c",
        help="of both softmaxes in R_c; Eq. 8 has 1",
    )


#: Options of the competition, its weight first.
COMPETITION = tuple(CompetitionConfig.__dataclass_fields__)
