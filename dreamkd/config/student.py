"""How a student is trained: the settings of its side of `distill`."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkd.config.images import BY_PRESET, MOST_IMAGES, MOST_STEPS
from dreamkd.config.options import option
from dreamkd.errors import ConfigError

STUDENT = "Student"


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student's loop. `auto` follows from the preset, the recipe and the input size."""

    student_pretrained: bool = option(
        False,
        group=STUDENT,
        help="start from the pretrained weights of the student's architecture, with a fresh head "
        "where the teacher has another number of classes; then the result is not data-free",
    )
    recipe: str = option(
        "auto",
        group=STUDENT,
        choices=("auto", "offline", "adaptive", "generator"),
        help="offline: on --data; adaptive: on images that compete with the student of their time; "
        "generator: likewise, from a generator that learns over batches. auto: offline with "
        "--data, generator for inputs of 32 to 64 px with --preset fast, else adaptive",
    )
    steps: int | str = option(
        "auto",
        group=STUDENT,
        minimum=1,
        maximum=MOST_STEPS,
        auto=BY_PRESET,
        help="student steps in all",
    )
    budget_minutes: float | None = option(
        None,
        group=STUDENT,
        above=0,
        maximum=10**6,
        help="choose --rounds and --steps, and with them every schedule and, unless it is given, "
        "--first-batches, so that images and student are done after so many minutes on this "
        "machine, measurements on --eval-data and the noise baseline not counted; decided once",
    )
    batch_size: int | str = option(
        "auto",
        group=STUDENT,
        minimum=2,
        maximum=MOST_IMAGES,
        auto=BY_PRESET,
        help="images per student step",
    )
    optimizer: str = option(
        "sgd", group=STUDENT, choices=("sgd", "adamw"), help="of the student's weights"
    )
    lr: float | str = option(
        "auto",
        group=STUDENT,
        above=0,
        auto="by preset and input size; 0.001 for adamw",
        help="peak rate, cosine to zero",
    )
    momentum: float = option(
        0.9, group=STUDENT, minimum=0, maximum=0.9999, help="SGD's Nesterov momentum"
    )
    weight_decay: float | str = option(
        "auto",
        group=STUDENT,
        minimum=0,
        auto="by preset; 0.01 for adamw",
        help="of weights, not of biases or batch norm",
    )
    warmup: int | str = option(
        "auto",
        group=STUDENT,
        minimum=0,
        auto="a twentieth of --steps with --preset fast, else 0",
        help="student steps in which the rate rises linearly",
    )
    cutmix: float | str = option(
        "auto",
        group=STUDENT,
        minimum=0,
        maximum=1,
        auto=BY_PRESET,
        help="share of student steps whose images exchange boxes; teacher and student see the same",
    )
    student_flip: str = option(
        "auto",
        group=STUDENT,
        choices=("auto", "on", "off"),
        help="mirror half of the images that student and teacher see; auto: as --flip if that is "
        "given, else all but grey images",
    )
    hard_labels: float = option(
        0.0,
        group=STUDENT,
        minimum=0,
        maximum=1000,
        help="weight of the cross-entropy with the images' labels beside the distillation",
    )
    label_smoothing: float = option(
        0.0, group=STUDENT, minimum=0, maximum=0.99, help="of the labels of --hard-labels"
    )
    store_labels: int = option(
        0,
        group=STUDENT,
        minimum=0,
        maximum=MOST_IMAGES,
        help="with --data: keep so many of the teacher's outputs for every image of every step, "
        "half of them the largest and half drawn, six bytes each, in labels/ of the run; 0 keeps "
        "none",
    )
    labels: str | None = option(
        None,
        group=STUDENT,
        help="with --data: a finished run with --store-labels on the same data, whose labels stand "
        "for the teacher",
    )
    ema: float | str = option(
        "auto",
        group=STUDENT,
        minimum=0,
        maximum=0.99999,
        auto="0.99 for a generator's images, else 0",
        help="decay of a moving average of the student, which is then the result; 0 for none",
    )
    bn_recalibration: int = option(
        0,
        group=STUDENT,
        minimum=0,
        maximum=MOST_IMAGES,
        help="batches of the bank on which the finished student's running statistics are taken "
        "anew; 0 keeps those of its training",
    )
    temperature: float | str = option(
        "auto",
        group=STUDENT,
        above=0,
        auto=BY_PRESET,
        symbol="tau",
        help="of the distillation; loss times tau^2",
    )

    def check(self) -> None:
        """Refuse combinations that no single field can see."""
        warmup, steps = self.warmup, self.steps
        if isinstance(warmup, int) and isinstance(steps, int) and warmup >= steps:
            raise ConfigError(f"--warmup: {warmup} must be below --steps {steps}")
