"""Settings that several commands share: the model, the machine, what is random, what is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamkd.config.options import option
from dreamkd.errors import ConfigError

MODEL, DATA, RUN = "Model", "Data", "Run"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """How the model (in `distill`: the teacher) is built, where its file does not say."""

    arch: str | None = option(
        None,
        group=MODEL,
        help="architecture of a checkpoint that does not name its own and fits several",
    )
    num_classes: int | None = option(
        None, group=MODEL, minimum=1, help="number of classes, else from the weights"
    )
    input_size: tuple[int, ...] = option(
        (), group=MODEL, minimum=1, help="C,H,W in pixels (H alone: H,H), else the model's own"
    )
    mean: tuple[float, ...] = option(
        (),
        group=MODEL,
        minimum=0,
        maximum=1,
        help="normalisation mean per channel, of pixels in [0,1], else the model's own",
    )
    std: tuple[float, ...] = option(
        (),
        group=MODEL,
        above=0,
        maximum=1,
        help="normalisation std per channel, of pixels in [0,1], else the model's own",
    )
    class_names: str | None = option(
        None,
        group=MODEL,
        identity=False,  # the names themselves are
        help="file of the classes' names, one a line in the order of the logits, else the model's "
        "own",
    )
    trust_pickle: bool = option(
        False,
        group=MODEL,
        help="load full pickles, which can run any code: only for files you made yourself",
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        if len(self.input_size) not in (0, 1, 3):
            raise ConfigError("--input-size: give H, or C,H,W")

    def load_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `dreamkd.models.load`; what was not given is None.

        Raises: ConfigError: the file of class names cannot be read.
        """
        size = self.input_size
        return {
            "arch": self.arch,
            "num_classes": self.num_classes,
            "input_size": (2 * size if len(size) == 1 else size) or None,
            "mean": self.mean or None,
            "std": self.std or None,
            "class_names": self.class_names and _lines(self.class_names),
            "trust_pickle": self.trust_pickle,
        }


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What is printed."""

    json: bool = option(
        False, group=RUN, identity=False, help="print the result as one JSON document on stdout"
    )
    quiet: bool = option(
        False, group=RUN, identity=False, help="print nothing on stderr but errors"
    )
    verbose: bool = option(
        False, group=RUN, identity=False, help="also print the settings of the run, one per line"
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        if self.quiet and self.verbose:
            raise ConfigError("--quiet and --verbose exclude each other")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how the work is computed."""

    device: str = option("auto", group=RUN, help="auto, cpu, cuda or cuda:N")
    precision: str = option(
        "auto",
        group=RUN,
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of matrix products; auto is bf16 where the hardware has it, else fp32, in which CUDA "
        "convolves by TF32 as torch does",
    )
    threads: int | str = option(
        "auto",
        group=RUN,
        minimum=1,
        maximum=1024,
        auto="as many as torch takes: one for each core, under torchrun one",
        help="CPU threads",
    )


@dataclass(frozen=True, kw_only=True)
class SeedConfig:
    """What makes random draws repeatable, and the compiler that long work wants."""

    seed: int = option(0, group=RUN, minimum=0, maximum=2**63 - 1, help="seed of every random draw")
    compile: str = option(
        "auto",
        group=RUN,
        choices=("auto", "on", "off"),
        help="torch.compile the step; auto compiles where the job is long enough to earn it back, "
        "by a rule about batch-norm layers: never without any",
    )


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """When long work stops by itself."""

    max_minutes: float | None = option(
        None,
        group=RUN,
        above=0,
        maximum=10**6,
        identity=False,
        help="stop after so many minutes with exit code 8, but not before a batch of images is "
        "made or a student step taken; the same command continues, an unfinished batch anew",
    )


def _lines(path: str) -> tuple[str, ...]:
    """The lines of a text file, none of them empty; what an editor put before them is not theirs.

    Raises: ConfigError: it cannot be read, holds none, or one is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--class-names {path}: cannot be read ({error})") from error
    if not text.strip():
        raise ConfigError(f"--class-names {path}: holds no names")
    # Not splitlines(), which also splits within names, at letters such as U+2028.
    names = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
    if "" in names:
        raise ConfigError(f"--class-names {path}: line {names.index('') + 1} is empty")
    return names
