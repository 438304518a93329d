"""docs/cli.md, generated: `python -m dreamkd.cli.docs` prints it, `--write` updates the file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dreamkd.cli.options import CONFIG_FILES, default_text, flags, ordered, value_name
from dreamkd.config import COMMANDS, OTHER_IMAGES, PRESETS, OptionField
from dreamkd.errors import EXIT_CODES

#: Command -> key of its JSON document -> what it holds.
RESULTS: dict[str, dict[str, str]] = {
    "inspect": {
        "model": "architecture, weights, source, classes, input size, normalisation, parameters",
        "layers": "of each batch norm in execution order: `name`, `kind`, `channels`, "
        "`resolution`, `calls`, `running_mean` and `running_var` (`min`, `mean`, `max`), "
        "`distance` from images of `--data`, `untrained`, `broken`",
        "never_ran": "names of layers that a forward pass does not reach",
        "repeated": "names of layers that run more than once",
        "norms": "other normalisation layers: kind and count",
        "invertible": "true or false",
        "obstacle": "why not, in words; empty where it can be",
        "verdict": "both in one line",
        "compared": "with `--data`: `source`, `images` that there are, `batches` drawn from them, "
        "`batch_size`, `r_feature`, its `spread`, `r_feature_chance`, `layers`; else null",
    },
    "invert": {
        "out": "the run folder",
        "images": "count",
        "shards": "batches, which are shards or the record files of class folders",
        "r_feature": "of the kept images, mean; in views whose border is black or mirrored, where "
        "those of their synthesis were",
        "r_feature_chance": "what as large batches show by chance",
        "teacher_top1": "percent of images that the teacher classifies as asked",
        "verifiers": "the same of each verifier, by name",
        "seconds": "of work by this process",
    },
    "distill": {
        "out": "the run folder",
        "student": "the checkpoint",
        "teacher_top1": "percent on `--eval-data`; null if never given, like the next five",
        "student_top1": "of the last step, which is the result",
        "noise_top1": "of the same student, trained on noise",
        "agreement": "percent on which student and teacher say the same",
        "best_top1": "the student's best while it learned, chosen by these data and no result",
        "best_step": "when that was",
        "eval_source": "what was measured on",
        "images": "count that the student learned from",
        "image_source": "what they are",
        "steps": "of the student",
        "data_free": "whether no real image made the student or its images",
        "synthesis_seconds": "of all batches that were made, over all processes",
        "student_seconds": "of the steps that made the student, those that a kill lost once; "
        "without the noise baseline's",
        "seconds": "of both, the work; what else the command took (loading, measuring, the noise "
        "baseline) is not in it",
        "curve": "the student as it learned: `step`, `images`, `top1`, `seconds`",
    },
    "eval": {
        "model": "as of `inspect`",
        "top1": "percent",
        "top5": "percent",
        "loss": "mean cross-entropy in nats",
        "count": "images",
        "per_class": "with `--per-class`: `name`, `count`, `top1` of each",
        "agreement": "with `--teacher`: percent on which both say the same; else null",
        "source": "what was read",
        "device": "where it was computed",
        "precision": "fp32, bf16 or fp16",
        "threads": "of the CPU",
    },
}

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def page() -> str:
    """The whole page."""
    parts = (_commands, _presets, _other_images, _results, _exit_codes)
    return "\n".join([_INTRODUCTION, *(line for part in parts for line in part()), ""])


def _commands() -> Iterator[str]:
    for name, config in COMMANDS.items():
        argument = "".join(f" {f.flag}" for f in ordered(config) if f.option.argument)
        yield f"\n## `dreamkd {name}{argument}`\n\n{config.__doc__}"
        for group, fields in groupby(ordered(config), key=lambda field: field.option.group):
            yield f"\n### {group}\n"
            yield from _table(
                ("option", "default", "legal", "symbol", "meaning"), map(_row, fields)
            )


def _row(field: OptionField) -> tuple[str, ...]:
    value = value_name(field)
    default = "required" if field.required else default_text(field)
    legal = field.legal.replace("|", ", ")
    name = flags(field) if field.option.argument or not value else f"{flags(field)} {value}"
    return f"`{name}`", default, legal, field.option.symbol, field.option.help


def _presets() -> Iterator[str]:
    yield _PRESETS_INTRODUCTION
    heads = [
        f"{preset}, {size}" for preset in PRESETS for size in ("< 32 px", "32-63 px", ">= 64 px")
    ]
    rows = (
        (f"`{name}`", *(_value(value) for preset in PRESETS.values() for value in preset[name]))
        for name in PRESETS["fast"]
    )
    yield from _table(("setting", *heads), rows)


def _other_images() -> Iterator[str]:
    yield _OTHER_IMAGES_INTRODUCTION
    names = dict.fromkeys(name for values in OTHER_IMAGES.values() for name in values)
    rows = (
        (f"`{name}`", *(_value(values.get(name, "")) for values in OTHER_IMAGES.values()))
        for name in names
    )
    yield from _table(("setting", *(f"`--images {kind}`" for kind in OTHER_IMAGES)), rows)


def _results() -> Iterator[str]:
    yield _RESULTS_INTRODUCTION
    for command, keys in RESULTS.items():
        yield f"\n### `dreamkd {command} --json`\n"
        yield from _table(("key", "value"), ((f"`{key}`", text) for key, text in keys.items()))


def _exit_codes() -> Iterator[str]:
    yield "\n## Exit codes\n"
    yield from _table(("code", "meaning"), ((str(c), text) for c, text in EXIT_CODES.items()))


def _value(value: Any) -> str:
    """As it is typed; nothing where it is measured on the model instead."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def main(argv: Sequence[str]) -> int:
    """Print the page, or write it where the repository keeps it."""
    if list(argv) == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


_INTRODUCTION = f"""# The command line

Generated from the code by `python -m dreamkd.cli.docs --write`; do not edit.

`dreamkd COMMAND --help` shows the same tables. A setting is taken from the flag, else from the file
given by `--config`, else from its default:

    default < --config FILE < flag

`--config FILE` reads {CONFIG_FILES}; names are those of the
flags, with dashes or underscores. An unknown name, like an unknown option, is refused together with
the nearest known one, before anything is created. An option that takes several values (`X,...`)
takes them separated by commas, and may be repeated; of any other that is repeated the last counts.

**Streams.** stdout carries the result only: a table (on a narrow terminal `inspect` leaves out what
tells least, the kind and input of its layers), or with `--json` exactly one JSON document
(NaN and infinity become `null`). Choices that were made, progress, hints and errors go to stderr;
`--quiet` leaves only the errors. Progress is a live bar on a terminal and otherwise one plain line
every 10 seconds at most; `NO_COLOR` is honoured. The time left is the phase's or, where it says
"in all", the whole job's. Terms of a loss, there, in `events.jsonl` and as a manifest's `terms`,
are multiplied by their weights; `r_feature` of a batch or a run is not. An error is one line,
`dreamkd: error: ...`.

**Stopping.** The first Ctrl-C, SIGTERM or SIGHUP, which a lost terminal sends, asks `invert` and
`distill` to save their state and end; the same command continues. A second Ctrl-C or SIGTERM ends
at once, which costs the work since the last saved state and nothing else. Commands that keep no
state end at the first. Once the result is out, Ctrl-C does nothing.

**Several GPUs.** `torchrun --standalone --nproc-per-node N --no-python dreamkd invert ...` shares
the batches among N processes, each on a GPU of its own; on CPUs the files are those of one
process, byte for byte, and on GPUs up to rounding. They stop together, within a second of the first
that is asked, also where another launcher sets torchrun's variables and watches over none of them;
and any number of them continues `invert`. A process that `WORLD_SIZE` gives others, but that lacks
one of these variables, says that it works by itself. `torchrun ... dreamkd distill --data RUN ...`
trains one student on images that exist: each process takes an equal part of every batch, so that
`--batch-size` is a multiple of N, and sees what one process would. Gradients are averaged, and so
are the student's running statistics; batch norm normalises by those of each part, so that N is a
setting of the run, and N processes continue it. (On several machines, which must see the same run
folder, without `--standalone`, as torchrun's manual says.) Batches that depend on those before them
(`--images generator`, `--bn-momentum`), a student that synthesises as it learns, and the other
commands are the work of one process and refuse more. torchrun itself ends with code 1 whatever its
processes end with, so that a script looks for `result.json`; and it gives each of them one thread,
unless `OMP_NUM_THREADS` or `--threads` says otherwise.

**Many jobs.** Jobs that run at once each name their own `--out`. What jobs of several `--seed` or
`--classes` made is one data set where it lies: `dreamkd distill --data 'runs/job-*/shards/*.tar'`
checks every run's manifest, and calls the student data-free if all of them are."""

_PRESETS_INTRODUCTION = """
## Presets

What `auto` becomes, by `--preset` and by the short side of the model's input. `jitter` is given as
a share of that side, and becomes at least one pixel; `jitter_border` without a value is found by a
trial on the model, and is `wrap` where no statistics are matched. Grey images are never flipped.
From 64 px, `image_lr`, `refine_lr` and the weights of `tv_l1`, `tv_l2` and `l2` are for models that
divide pixels by 0.226 in the mean, and are converted for others (a generator's `image_lr` is of its
weights and stays).
"""

_RESULTS_INTRODUCTION = """
## Results

What `--json` prints; keys are only ever added. The same stands in `result.json` of a finished run,
without what differs from call to call, so that a script may also wait for that file."""

_OTHER_IMAGES_INTRODUCTION = """
Images other than pixels have values of their own instead, whatever the preset and the size.
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
