"""Options are generated from the settings: help, refusals and precedence hold for every one."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamkd.cli import main
from dreamkd.cli.options import GROUPS, Request, flags, ordered, parse
from dreamkd.config import COMMANDS, OptionField, merge, options
from dreamkd.errors import ConfigError

LEGAL = {
    "inspect": {"model": "resnet18"},
    "invert": {"model": "resnet18"},
    "distill": {"teacher": "resnet18", "student": "resnet18"},
    "eval": {"model": "resnet18", "data": "photos"},
}
FIELDS = [(name, field) for name, config in COMMANDS.items() for field in options(config)]
COMPETITION: dict[str, list[str]] = {
    "method": ["--method", "adaptive"],
    "student": ["--student", "s"],
    "competition": [],
    "competition_loss": [],
    "competition_temperature": [],
}
FIELD_IDS = [f"{name} {field.flag}" for name, field in FIELDS]


def arguments(command: str, **given: str) -> list[str]:
    """A command line in which everything required is given, and `given` beside it."""
    values = {**LEGAL[command], **given}
    fields = {field.name: field for field in options(COMMANDS[command])}
    words = [
        [value] if fields[name].option.argument else [fields[name].flag, value]
        for name, value in values.items()
    ]
    return [command, *itertools.chain.from_iterable(words)]


def illegal_values(field: OptionField) -> list[str]:
    """Text that `field` must refuse: wrong type, out of range at each bound, not a choice."""
    o = field.option
    if o.choices:
        return ["", "neither", o.choices[0].upper(), o.choices[0] + " "]
    if field.kind is str:
        return [""]
    step: float = 1 if field.kind is int else 1e-9
    wrong = ["", "many", "1;2", "0x10", "nan", "inf", "-inf", "1e999"]
    wrong += ["1.5", "9" * 20, "9" * 5000] if field.kind is int else []
    wrong += [] if o.auto else ["auto"]
    wrong += [str(o.minimum - step)] if o.minimum is not None else []
    wrong += [str(o.maximum + step)] if o.maximum is not None else []
    wrong += [str(o.above), str(o.above - 1)] if o.above is not None else []
    return [*wrong, "1,,2"] if field.is_list else [*wrong, "1,2"]


def legal_value(field: OptionField) -> str:
    """Text that `field` must accept."""
    o = field.option
    if o.choices:
        return o.choices[-1]
    if field.kind is str:
        return "Bäume und Straße/模型.pt"
    number = o.maximum if o.maximum is not None else (o.above or o.minimum or 0) + 7
    return str(int(number)) if field.kind is int else str(number)


@pytest.mark.parametrize(("command", "field"), FIELDS, ids=FIELD_IDS)
def test_every_illegal_value_is_refused_in_one_line_and_creates_nothing(
    command: str,
    field: OptionField,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if field.is_flag:
        assert main([*arguments(command), f"{field.flag}=yes"]) == 2
        streams = capsys.readouterr()
        assert streams.err == f"dreamkd: error: option '{field.flag}' does not take a value\n"
    else:
        value, *others = illegal_values(field)
        assert main(arguments(command, **{field.name: value})) == 2
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.startswith(f"dreamkd: error: {field.flag}: ")
        assert streams.err.count("\n") == 1
        for value in others:
            with pytest.raises(ConfigError) as refusal:
                merge(COMMANDS[command], {**LEGAL[command], field.name: value})
            assert str(refusal.value).startswith(f"{field.flag}: "), value
            assert len(str(refusal.value)) < 250
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "field"), FIELDS, ids=FIELD_IDS)
def test_every_legal_value_reaches_the_settings(command: str, field: OptionField) -> None:
    if field.is_flag:
        given = [*arguments(command), field.flag]
        want: Any = True
    else:
        text = legal_value(field)
        given = arguments(command, **{field.name: text})
        want = (field.kind(text),) if field.is_list else field.kind(text)
    if field.name in ("input_size", "warmup", "steps"):  # more than one value; below --steps
        more = {"input_size": ["--input-size", "7,7"], "steps": ["--warmup", "0"]}
        given += more.get(field.name, ["--steps", "999"])
        want = (7 + field.option.minimum, 7, 7) if field.name == "input_size" else want
    needs = {
        "label_smoothing": ["--hard-labels", "1"],
        "eval_every": ["--eval-data", "d"],
        "store_labels": ["--data", "d"],
        "labels": ["--data", "d"],
    }
    if command == "inspect":
        needs["batch_size"] = ["--data", "d"]
    given += needs.get(field.name, [])
    if command == "invert" and field.name in COMPETITION:  # legal together only
        given += [
            word for name, words in COMPETITION.items() if name != field.name for word in words
        ]
    request = parse(given)
    assert isinstance(request, Request)
    assert getattr(request.config, field.name) == want


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_help_shows_every_option_with_range_default_and_symbol(
    command: str,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([command, "--help"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    page = " ".join(" ".join(line.strip("│ ").split()) for line in lines)
    page = re.sub(r"\s+", " ", page)
    assert "…" not in page  # nothing is cut off
    assert str(COMMANDS[command].__doc__) in page
    for field in options(COMMANDS[command]):
        o = field.option
        assert field.flag in page
        for text in (o.symbol, field.legal, *([] if field.required else [str(o.help)])):
            assert spelled(text) in spelled(page), field.flag
        if field.required:
            assert "required" in page
        elif field.default not in (None, (), False) or field.default == 0:
            shown = field.default
            shown = f"{shown:g}" if isinstance(shown, float) else shown
            assert field.is_flag or spelled(f"default {shown}") in spelled(page), field.flag


def spelled(text: str) -> str:
    """Without spaces, which a narrow column may turn into line breaks."""
    return re.sub(r"\s|--[a-z0-9-]+", "", text)


def test_top_level_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["-h"], ["--help"]):
        assert main(argv) == 0
        page = capsys.readouterr().out
        assert all(name in page for name in (*COMMANDS, "--version"))
        assert "<bool>" not in page


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("dreamkd inv", "invert"),
        ("dreamkd distill --first-ba", "--first-batches"),
        ("dreamkd invert --preset ", "fast released paper"),
        ("dreamkd eval digits", "digits_resnet14"),
        ("dreamkd distill --student cifar_resnet1", "cifar_resnet14 cifar_resnet18"),
    ],
)
def test_a_shell_completes_commands_options_and_values(words: str, known: str) -> None:
    environment = {"_DREAMKD_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(words.count(" "))
    code = "from dreamkd.cli import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == known.split()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"dreamkd \d+\.\d+\.\S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["evaluate"],
            "unknown command 'evaluate' (did you mean 'eval'?); "
            "there are inspect, invert, distill, eval",
        ),
        (["invert", "m", "--jiter", "3"], "unknown option '--jiter' (did you mean '--jitter'?)"),
        (["invert", "m", "--jiter=3"], "unknown option '--jiter' (did you mean '--jitter'?)"),
        (["eval", "m", "--momentum", "1"], "unknown option '--momentum' (of distill, not of eval)"),
        (["inspect", "m", "-x"], "unknown option '-x'"),
        (["--vers"], "unknown option '--vers' (did you mean '--version'?)"),
        (["inspect", "m", "--zzzzz"], "unknown option '--zzzzz'"),
        (["inspect", "m", "--\x1b[31m\n"], "unknown option '--\\x1b[31m\\n'"),
        (
            ["invert", "m", "--preset", "fats"],
            "--preset: 'fats' is not one of fast, released, paper ",
        ),
        (["inspect"], "MODEL is missing: torchvision or timm name, bundled teacher, or checkpoint"),
        (["eval", "m"], "--data is missing: "),
        (["inspect", "m", "--arch"], "option '--arch' requires an argument"),
        (["inspect", "m", "n"], "got unexpected extra argument"),
        (["inspect", "m", "--quiet", "--verbose"], "--quiet and --verbose exclude each other"),
        (["inspect", "m", "--input-size", "3,4"], "--input-size: give H, or C,H,W"),
        (
            ["distill", "--teacher", "t", "--student", "s", "--warmup", "9", "--steps", "9"],
            "--warmup: 9 must be below --steps 9",
        ),
    ],
)
def test_usage_errors(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"dreamkd: error: {line}")
    assert streams.err.count("\n") == 1


def test_repeated_options_append_and_last_one_wins_elsewhere() -> None:
    request = parse(
        ["inspect", "m", "--mean", ".4,.5", "--mean", ".6", "--arch", "a", "--arch", "b"]
    )
    assert isinstance(request, Request)
    assert request.config.mean == (0.4, 0.5, 0.6)
    assert request.config.arch == "b"


def test_negative_numbers_are_values_and_not_options() -> None:
    with pytest.raises(ConfigError, match=r"--lr: '-1' is out of range; legal: >0"):
        parse(["distill", "--lr", "-1"])


def test_flag_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "my settings.toml"
    file.write_text('model = "resnet18"\nper-class = 3\nce = 0.5\nimage_steps = "auto"\n')
    request = parse(["invert", "--config", str(file), "--per-class", "4"])
    assert isinstance(request, Request)
    config = request.config
    assert (config.model, config.per_class, config.ce, config.seed) == ("resnet18", 4, 0.5, 0)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.toml", "per_clas = 3", "unknown setting 'per_clas' (did you mean 'per_class'?)"),
        ("a.toml", "per_class = 0", "--per-class: 0 is out of range; legal: 1..65536"),
        ("a.toml", "per_class = true", "--per-class: True is not a whole number"),
        ("a.toml", "per_class = ", "--config a.toml: not valid TOML or JSON"),
        ("a.json", "[1]", "--config a.json: expected a table of settings"),
        ("a.json", '{"seed": null}', "--seed: None is not a whole number"),
        ("a.json", '{"threads": null}', "--threads: None is not a whole number"),
        ("a.json", '{"ce": NaN}', "--ce: nan is not a finite number"),
        ("a.json", '{"out": "a\\u0000b"}', r"--out: 'a\x00b' is not text"),
        ("a.json", '{"out": "\\ud800"}', r"--out: '\ud800' cannot be written in utf-8"),
        (
            "a.toml",
            "per-class = 3\n[config]\nseed = 1",
            "--config a.toml: per-class is given beside the table 'config'; "
            "put all settings into that table, or none",
        ),
        ("a.json", '{"verifier": {"a": 1}}', "--verifier: {'a': 1} is not text"),
        ("a.json", '{"seed": %s}' % ("9" * 5000), "--config a.json: not valid TOML or JSON"),
        ("a.json", "[" * 100_000, "--config a.json: not valid TOML or JSON"),
    ],
)
def test_config_file_is_refused_like_flags(
    name: str,
    content: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    assert main(["invert", "m", "--config", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dreamkd: error: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("path", ["missing.toml", ".", "/dev/zero"])
def test_config_file_that_is_no_file(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invert", "m", "--config", path]) == 2
    assert capsys.readouterr().err.startswith(f"dreamkd: error: --config {path}: ")


def test_settings_of_a_run_are_a_config_file(tmp_path: Path) -> None:
    file = tmp_path / "resolved.json"
    settings = '"config": {"model": "m", "mean": [0.5], "arch": null}'
    # A run records its networks by the names of the options that asked for them.
    for beside in ('"versions": {}', '"requested": {}, "student": {}, "bn_prior": null'):
        file.write_text(f"{{{beside}, {settings}}}")
        request = parse(["invert", "--config", str(file)])
        assert isinstance(request, Request)
        assert (request.config.model, request.config.mean) == ("m", (0.5,))


@pytest.mark.parametrize("config", COMMANDS.values(), ids=COMMANDS)
def test_required_and_own_options_come_first_in_their_group(config: type) -> None:
    fields = ordered(config)
    assert {field.name for field in fields} == {field.name for field in options(config)}
    assert [f.option.group for f in fields] == sorted(
        (f.option.group for f in fields), key=GROUPS.index
    )
    for _, group in itertools.groupby(fields, key=lambda f: f.option.group):
        required = [field.required for field in group]
        assert required == sorted(required, reverse=True)
    assert not {"config", "help"} & {field.name for field in fields}  # taken by the command line


def test_switch_that_is_on_by_default_can_be_turned_off() -> None:
    switch = next(f for f in options(COMMANDS["eval"]) if f.is_flag)
    assert flags(switch) == switch.flag
    assert flags(replace(switch, name="clip", default=True)) == "--clip/--no-clip"
