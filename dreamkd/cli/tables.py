"""Results as tables for people; programs read the JSON document instead."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from dreamkd.cli.display import duration
from dreamkd.cli.streams import one_line

if TYPE_CHECKING:
    from dreamkd.config import DistillConfig
    from dreamkd.distillation import Distillation
    from dreamkd.evaluation import Evaluation
    from dreamkd.inspection import Comparison, Inspection, LayerReport, Summary
    from dreamkd.models import Card

#: Off a terminal nobody sees a width: tables take what they need, so that `grep` finds whole names.
_UNLIMITED = 10_000


#: How numbers of workflows are written, by the last word of a field's name.
_UNITS: dict[str, Callable[[float], str]] = {
    "seconds": duration,
    **dict.fromkeys(("top1", "agreement", "verifiers"), "{:.2f} %".format),
}


def text(*renderables: RenderableType) -> str:
    """What `renderables` look like on stdout: in colour and wrapped on a terminal, else plain."""
    width = None if sys.stdout.isatty() else _UNLIMITED
    page = _Page()
    console = Console(file=page, highlight=False, emoji=False, markup=False, width=width)
    for renderable in renderables:
        console.print(renderable)
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


class _Page(io.StringIO):
    """What looks like stdout to rich, which asks for colours and for characters to draw with."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding

    def isatty(self) -> bool:
        return sys.stdout.isatty()


def facts(result: Mapping[str, Any]) -> Table:
    """Two columns, name and value with its unit; a mapping inside becomes one row per entry."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(_cell(name), _cell(value))
    return table


def inspection(found: Inspection) -> tuple[RenderableType, ...]:
    """The layers in execution order, the model and the verdict."""
    verdict = Text(one_line(found.verdict), style="green" if found.invertible else "red")
    summary = facts(_model(found.card))
    if found.norms:
        norms = ", ".join(f"{number} {kind}" for kind, number in found.norms.items())
        summary.add_row(_cell("other norms"), _cell(norms))
    if found.compared:
        summary.add_row(_cell("R_feature"), _cell(_level(found.compared)))
    summary.add_row(_cell("verdict"), verdict)
    return (_layers(found), summary) if found.layers else (summary,)


def evaluation(found: Evaluation, *, per_class: bool) -> tuple[RenderableType, ...]:
    """The measures, after the table of classes if it is wanted."""
    measures = {
        "images": found.count,
        "top-1": f"{found.top1:.2f} %",
        "top-5": f"{found.top5:.2f} %",
        "loss": f"{found.loss:.4f}",
        "agreement": None if found.agreement is None else f"{found.agreement:.2f} %",
    }
    summary = facts({name: value for name, value in measures.items() if value is not None})
    if not per_class:
        return (summary,)
    table = _table("class", "images>", "top-1 %>")
    for row in found.per_class:
        table.add_row(_cell(row.name), str(row.count), f"{row.top1:.2f}")
    return table, summary


def distillation(found: Distillation, config: DistillConfig) -> tuple[RenderableType, ...]:
    """Teacher, student and noise baseline side by side, if measured, and the run."""
    run = {k: v for k, v in found.to_json().items() if k != "curve"}
    top1 = {name: run.pop(f"{name}_top1") for name in ("teacher", "student", "noise", "best")}
    measured = {name: value for name, value in run.items() if value is not None}
    summary = facts({"student": found.student, **measured})
    if top1["teacher"] is None:
        return (summary,)
    table = _table("network", "learned from", "top-1 %>", "best seen %>")
    rows = {
        "teacher": (f"teacher {config.teacher}", "its own data"),
        "student": (f"student {config.student}", found.image_source),
        "noise": (f"student {config.student}", "noise, as many images and steps"),
    }
    for row, (network, source) in rows.items():
        if top1[row] is not None:
            best = f"{top1['best']:.2f}" if row == "student" else ""
            table.add_row(_cell(network), _cell(source), f"{top1[row]:.2f}", best)
    return table, summary


def _layers(found: Inspection) -> _Layers:
    layers = found.layers
    measured, compared = any(layer.running_mean for layer in layers), found.compared
    notes = [_note(layer, pretrained=found.card.pretrained) for layer in layers]
    columns = {
        "layer": [layer.name for layer in layers],
        "kind": [layer.kind for layer in layers],
        "channels>": [str(layer.channels) for layer in layers],
        "input>": [_size(layer.resolution) for layer in layers],
    }
    if measured:
        columns["mean-"] = [_range(layer.running_mean) for layer in layers]
        columns["variance-"] = [_range(layer.running_var) for layer in layers]
    if compared:
        columns["distance-"] = [_value(layer.distance) for layer in layers]
    if any(notes):
        columns["note"] = notes
    return _Layers(columns)


@dataclass(frozen=True)
class _Layers:
    """A row per layer; where they do not fit, closer, and then without what tells least."""

    columns: Mapping[str, Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        del console
        for padding, dropped in ((1, ()), (0, ()), (0, ("kind",)), (0, ("kind", "input>"))):
            columns = {k: cells for k, cells in self.columns.items() if k not in dropped}
            if self._width(columns, padding) <= options.max_width:
                break
        table = _table(*columns, padding=padding)
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*map(_cell, cells))
        yield table

    @staticmethod
    def _width(columns: Mapping[str, Sequence[str]], padding: int) -> int:
        """What a table takes that breaks nothing but notes, and these between words."""
        widest = 2 + (len(columns) - 1) * (2 * padding + 1)
        for name, cells in columns.items():
            whole = cells if name != "note" else " ".join(cells).split()
            widest += max(cell_len(one_line(text)) for text in (name.rstrip(">-"), *whole))
        return widest


def _level(found: Comparison) -> str:
    """R_feature of images, beside what chance explains."""
    spread = f" ± {found.spread:.3g}" if found.batches > 1 else ""
    drawn = found.batches * found.batch_size
    images = f"{drawn:,}" if drawn == found.images else f"{drawn:,} of {found.images:,}"
    how = f"{found.batches} batches of {found.batch_size}" if found.batches > 1 else "one batch"
    chance = f"{found.r_feature_chance:.3g} by chance"
    return f"{found.r_feature:.4g}{spread} of {images} images, {how} ({chance})"


def _note(layer: LayerReport, *, pretrained: bool) -> str:
    said = {
        "never runs": layer.calls == 0,
        f"runs {layer.calls} times": layer.calls > 1,
        "untrained": layer.untrained and pretrained,  # random weights are, all of them
        layer.broken: bool(layer.broken),
        f"variance is zero in {layer.dead_channels} channels": layer.dead_channels > 0,
    }
    return ", ".join(what for what, holds in said.items() if holds)


def _model(card: Card) -> dict[str, str]:
    return {
        "model": card.architecture,
        "weights": card.weights + (", made without real images" if card.data_free else ""),
        "parameters": f"{card.parameters:,}",
        "classes": f"{card.num_classes:,}",
        "input": f"{_size(card.input_size)}, {card.interpolation}, crop {card.crop_pct:g}"
        + (f", {card.crop_mode}" if card.crop_mode != "center" else ""),
        "mean": _value(card.mean),
        "std": _value(card.std),
    }


def _size(extents: Sequence[int] | None) -> str:
    return "-" if extents is None else "x".join(map(str, extents))


def _range(summary: Summary | None) -> str:
    return "-" if summary is None else f"{summary.min:.2g} .. {summary.max:.2g}"


def _table(*columns: str, padding: int = 1) -> Table:
    """An empty table; a column whose name ends in `>` or `-` holds numbers, which never break.

    Those of `-` stand at the left.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, padding), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.rstrip(">-"),
            justify="right" if column.endswith(">") else "left",
            overflow="fold",
            no_wrap=column[-1] in ">-",
        )
    return table


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in result.items():
        words = key.split("_")
        write: Callable[[Any], str] = _UNITS.get(words[-1], _value)
        name = " ".join(words[:-1] if words[-1] == "seconds" else words) or "work"
        name = name.replace("top1", "top-1")
        # What lies inside has names as the user knows them, such as a network's.
        parts = value if isinstance(value, Mapping) else {"": value}
        for inner, part in parts.items():
            number = isinstance(part, (int, float)) and not isinstance(part, bool)
            yield f"{name}: {inner}" if inner else name, write(part) if number else _value(part)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value)
    return str(value)


def _cell(content: str) -> Text:
    """Text as it is: neither markup nor control characters of other people's names take effect."""
    return Text(one_line(content))
