"""Results as tables for people; programs read the JSON document instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dreamkd.cli.streams import one_line

if TYPE_CHECKING:
    from dreamkd.evaluation import Evaluation

#: Off a terminal nobody sees a width: tables take what they need, so that `grep` finds whole names.
_UNLIMITED = 10_000


def text(*renderables: RenderableType) -> str:
    """What `renderables` look like on stdout: coloured and wrapped on a terminal, plain elsewhere."""
    width = None if sys.stdout.isatty() else _UNLIMITED
    console = Console(highlight=False, emoji=False, markup=False, width=width)
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())


def facts(result: Mapping[str, Any]) -> Table:
    """Two columns, name and value; a mapping inside becomes one row per entry."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(result):
        table.add_row(_cell(name), _cell(value))
    return table


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


def _table(*columns: str) -> Table:
    """An empty table; a column whose name ends in `>` holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold"
        )
    return table


def _rows(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in result.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name}: ")
        else:
            yield name, _value(value)


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
