"""Typer commands whose options are the fields of the config classes.

Typer only splits the command line: every value arrives here as text and is parsed by its field, so
that an illegal one is refused with the same line wherever it came from. The work itself starts
after Typer has returned, outside of its exception handling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.main import get_command

from dreamkd.cli.completion import offers
from dreamkd.cli.streams import writing_to_stdout
from dreamkd.config import (
    BY_PRESET,
    COMMANDS,
    ImageConfig,
    OptionField,
    merge,
    options,
    read_file,
)
from dreamkd.errors import ConfigError, nearest

#: Order of the panels of a help page and of the tables of docs/cli.md.
GROUPS = ("Model", "Data", "Images", "Image loss", "Student", "Run")

CONFIG_FILES = "settings from a TOML or JSON file, or a run's resolved.json"


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    command: str
    config: Any  # an instance of COMMANDS[command]


def parse(argv: Sequence[str]) -> Request | int:
    """The request in `argv`, or the exit code if Typer answered it (help, version).

    Raises:
        ConfigError: unknown command or option, illegal or missing value.
        RunError: stdout cannot be written, where Typer's answer goes.
    """
    argv = list(argv) or ["--help"]
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise ConfigError(
            f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}; "
            f"there are {', '.join(COMMANDS)}"
        )
    answer: Any = None
    try:
        with writing_to_stdout():
            answer = application()(argv, prog_name="dreamkd", standalone_mode=False)
    except SystemExit:  # rich's answer to `--help | head`
        return 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of Typer, whose class is private
            raise
        raise ConfigError(_usage_line(error, argv)) from None
    return answer if isinstance(answer, Request) else int(answer or 0)


@cache
def application() -> Callable[..., Any]:
    """What Typer makes of one command per entry of `config.COMMANDS`."""
    app = typer.Typer(
        add_completion=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        epilog=_TOP_EPILOG,
    )
    app.callback(add_help_option=False)(_with_parameters(_top_level, [_VERSION, _help("Options")]))
    for name, config in COMMANDS.items():
        epilog = _PRESET_EPILOG if issubclass(config, ImageConfig) else None
        decorate = app.command(name, help=config.__doc__, epilog=epilog, add_help_option=False)
        decorate(_command(name, config))
    group = get_command(app)
    for parameter in group.params:
        if parameter.name in ("install_completion", "show_completion"):
            parameter.metavar = ""  # Typer shows <bool> beside its own flags
    return group


def ordered(config: type) -> list[OptionField]:
    """The options of `config` by group; required ones first, then the command's own."""
    owner = {
        name: rank
        for rank, cls in reversed(list(enumerate(config.__mro__)))
        for name in inspect.get_annotations(cls)
    }
    return sorted(
        options(config),
        key=lambda f: (GROUPS.index(f.option.group), not f.required, owner[f.name]),
    )


def flags(field: OptionField) -> str:
    """`--name`, or `--name/--no-name` of a switch that is on by default."""
    if field.is_flag and field.default is True:
        return f"{field.flag}/--no-{field.flag[2:]}"
    return field.flag


def value_name(field: OptionField) -> str:
    """What stands for the value in a help page; nothing for switches."""
    if field.is_flag:
        return ""
    name = "WORD" if field.option.choices else {int: "N", float: "X", str: "TEXT"}[field.kind]
    return f"{name},..." if field.is_list else name


def default_text(field: OptionField) -> str:
    """The default in words; empty where the help line says what happens without a value."""
    if field.is_flag:
        return "on" if field.default else ""
    if field.default is None or field.default == ():
        return ""
    if field.option.auto not in ("", BY_PRESET):
        return f"{field.default}: {field.option.auto}"
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def details(field: OptionField) -> list[str]:
    """Paper symbol, legal values and default, each only where there is one."""
    if field.required:
        default = "required"
    else:
        default = f"default {text}" if (text := default_text(field)) else ""
    return [part for part in (field.option.symbol, field.legal, default) if part]


def _command(name: str, config: type) -> Callable[..., Request]:
    """The function that Typer calls: it merges what was given with the file and the defaults."""
    fields = {field.name: field for field in ordered(config)}

    def command(**given: Any) -> Request:
        file = given.pop("config", None)
        del given["help"]
        values = {
            key: _given(fields[key], value) for key, value in given.items() if value is not None
        }
        settings = read_file(Path(file), known=fields) if file is not None else None
        return Request(name, merge(config, values, file=settings))

    parameters = [_parameter(field) for field in fields.values()]
    return _with_parameters(command, [*parameters, _CONFIG, _help("Run")])


def _given(field: OptionField, value: Any) -> Any:
    """A repeated option appends: `--mean .4,.5 --mean .6` is `--mean .4,.5,.6`."""
    return ",".join(value).split(",") if field.is_list else value


def _parameter(field: OptionField) -> inspect.Parameter:
    kind: Any = bool if field.is_flag else list[str] if field.is_list else str
    notes = f" [dim]{escape('[' + ', '.join(details(field)) + ']')}[/dim]" if details(field) else ""
    text = escape(field.option.help) + notes
    if field.option.argument:
        argument = typer.Argument(metavar=field.flag, help=text, autocompletion=offers(field))
        return _keyword(field.name, str, argument)
    info = typer.Option(
        flags(field),
        metavar=value_name(field),
        help=text,
        show_default=False,
        rich_help_panel=field.option.group,
        autocompletion=offers(field),
    )
    return _keyword(field.name, kind, info)


def _keyword(name: str, kind: Any, info: Any) -> inspect.Parameter:
    # None stands for "not given": defaults are merged in later, below the config file.
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],
    )


def _with_parameters(
    function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> Callable[..., Any]:
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


def _top_level(**given: Any) -> None:
    """Knowledge distillation without the data: images and students out of a trained classifier."""
    del given


def _show_help(context: typer.Context, wanted: bool | None) -> None:
    if wanted:
        print(context.get_help(), end="")
        raise typer.Exit


def _show_version(wanted: bool | None) -> None:
    if wanted:
        from dreamkd.identity import installed  # slow, and wanted only here

        print(f"dreamkd {installed('dreamkd')}")
        raise typer.Exit


def _usage_line(error: Any, argv: Sequence[str]) -> str:
    if hasattr(error, "possibilities"):
        return f"unknown option {error.option_name!r}{_hint(error.option_name, argv[0])}"
    text = str(error.format_message()).strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _hint(option: str, command: str) -> str:
    """Where an option that `command` does not have may have come from."""
    owners = [name for name, config in COMMANDS.items() if option in _all_flags(config)]
    if owners and command in COMMANDS:
        return f" (of {' and '.join(owners)}, not of {command})"
    return nearest(option, _all_flags(COMMANDS[command]) if command in COMMANDS else ["--version"])


def _all_flags(config: type) -> list[str]:
    return ["--config", "--help", *(flag for f in options(config) for flag in flags(f).split("/"))]


def _help(panel: str) -> inspect.Parameter:
    """Our own --help, because Typer's stands in a panel of its own above the others."""
    info = typer.Option(
        "--help",
        "-h",
        metavar="",
        help="show this page",
        show_default=False,
        rich_help_panel=panel,
        is_eager=True,
        callback=_show_help,
    )
    return _keyword("help", bool, info)


_VERSION = _keyword(
    "version",
    bool,
    typer.Option(
        "--version",
        metavar="",
        help="show the version",
        show_default=False,
        is_eager=True,
        callback=_show_version,
    ),
)
_CONFIG = _keyword(
    "config",
    str,
    typer.Option(
        "--config",
        metavar="FILE",
        help=f"{CONFIG_FILES}; flags win over it",
        show_default=False,
        rich_help_panel="Run",
    ),
)

_TOP_EPILOG = (
    "Begin with [bold]dreamkd inspect digits_resnet14[/bold]; "
    "[bold]dreamkd COMMAND --help[/bold] lists the settings of a command."
)
_PRESET_EPILOG = (
    "auto: by preset and input size where the page does not say more; "
    "docs/cli.md has the table. What was chosen is recorded in the run's resolved.json."
)
