"""The settings of the commands that look at a network and make nothing: `inspect` and `eval`."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkd.config.options import check_bases, option
from dreamkd.config.shared import DATA, MODEL, RUN, ModelConfig, OutputConfig, RuntimeConfig
from dreamkd.errors import ConfigError

#: How a picture is resized: what cards of networks may say, and the command line.
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

#: What becomes of a picture of another shape than the input: its middle is cut out, or all of it is
#: squashed into that shape.
CROP_MODES = ("center", "squash")


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
        group=DATA,
        help="images, given as to eval, whose statistics are compared with the stored ones, layer "
        "by layer; labels do not matter",
    )
    batch_size: int = option(
        256, group=DATA, minimum=2, help="images of --data in each of at most ten full batches"
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
        group=DATA,
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
        None, group=DATA, choices=INTERPOLATIONS, help="of the resize, else the model's own"
    )
    crop_pct: float | None = option(
        None,
        group=DATA,
        above=0,
        maximum=1,
        help="size / resized short side, else the model's own",
    )
    crop_mode: str | None = option(
        None,
        group=DATA,
        choices=CROP_MODES,
        help="of pictures of another shape: cut out the middle, or squash all of it; else the "
        "model's own",
    )
    batch_size: int = option(256, group=DATA, minimum=1, identity=False, help="images at once")
    per_class: bool = option(False, group=DATA, identity=False, help="add a table of each class")

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        check_bases(EvalConfig, self)
