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

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def page() -> str:
    """The whole page."""
    parts = (_commands, _presets, _other_images, _exit_codes)
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


def _exit_codes() -> Iterator[str]:
    yield "\n## Exit codes\n"
    yield from _table(("code", "meaning"), ((str(c), text) for c, text in EXIT_CODES.items()))


def _value(value: Any) -> str:
    """As it is typed; nothing where the weight of R_feature is given or calibrated instead."""
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
takes them separated by commas, and may be repeated.

**Streams.** stdout carries the result only: a table, or with `--json` exactly one JSON document
(NaN and infinity become `null`). Choices that were made, progress, hints and errors go to stderr;
`--quiet` leaves only the errors. Progress is a live bar on a terminal and otherwise one plain line
every 10 seconds at most; `NO_COLOR` is honoured. An error is one line, `dreamkd: error: ...`.

**Stopping.** The first Ctrl-C or SIGTERM asks `invert` and `distill` to save their state and end;
the same command continues. The second one ends at once, which costs the work since the last saved
state and nothing else. Commands that keep no state end at the first.

**Several GPUs.** `torchrun --standalone --nproc-per-node N --no-python dreamkd invert ...` shares
the batches among N processes, each on a GPU of its own; the files are those of one process. (On
several machines, which must see the same run folder, without `--standalone`, as torchrun's manual
says.) They stop together, and any number of them continues. Batches that depend on those before
them (`--images generator`, `--bn-momentum`) and the other commands are the work of one process and
refuse more."""

_PRESETS_INTRODUCTION = """
## Presets

What `auto` becomes, by `--preset` and by the short side of the model's input. `jitter` is given as
a share of that side, and becomes at least one pixel. Grey images are never flipped. From 64 px,
`image_lr`, `refine_lr` and the weights of `tv_l1`, `tv_l2` and `l2` are for models that divide
pixels by 0.226 in the mean, and are converted for others (a generator's `image_lr` is of its
weights and stays).
"""

_OTHER_IMAGES_INTRODUCTION = """
Images other than pixels have values of their own instead, whatever the preset and the size.
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
