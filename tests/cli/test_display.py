"""Progress: plain lines off a terminal, bars on one."""

import math
import os
import pty
import re
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
from rich.console import Console

from dreamkd.cli.display import Bars, Lines, _new_bars, display, duration
from dreamkd.events import Finished, Hint, Note, Progress, ignore


def test_lines_come_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    for step in range(101):  # one step a second
        now = float(step)
        lines(Progress("images 1", step, 100, "steps", {"r_feature": 12.3456, "ce": 0.5}))
        if step == 50:
            lines(Progress("student", 1, 10, "epochs"))  # within ten seconds of another line
    now = 110.0
    lines(Progress("images 2", 3, 100, "steps"))
    lines(Finished("invert", 110.0))
    written = capsys.readouterr().err.splitlines()
    assert written[0] == "images 1: 0/100 steps, r_feature 12.35, ce 0.5"
    # 90 steps at one a second are left, then 80, ...
    assert written[1] == "images 1: 10/100 steps, 1 min 30 s left, r_feature 12.35, ce 0.5"
    assert written[2] == "images 1: 20/100 steps, 1 min 20 s left, r_feature 12.35, ce 0.5"
    assert written[10] == "images 1: 100/100 steps, r_feature 12.35, ce 0.5"
    assert written[11:] == ["images 2: 3/100 steps", "invert: done in 1 min 50 s"]


def test_the_time_that_a_job_still_takes_is_its_own_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    for step, left in ((0, None), (1, 70.0), (2, 0.0)):
        now = 10.0 * step
        lines(Progress("images 1", step, 3, "steps", left=left))
    assert capsys.readouterr().err.splitlines() == [
        "images 1: 0/3 steps",
        "images 1: 1/3 steps, 1 min 10 s left in all",  # not the 20 s of the phase
        "images 1: 2/3 steps",
    ]


def test_the_last_line_of_a_phase_is_shown_whenever_it_comes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines(clock=lambda: 0.0)
    for step in (1, 2, 3):
        lines(Progress("invert", step, 3, "steps"))
    lines(Finished("invert", 1.0))
    wanted = ["invert: 1/3 steps", "invert: 3/3 steps", "invert: done in 1.0 s"]
    assert capsys.readouterr().err.splitlines() == wanted


def test_the_last_line_is_shown_whatever_ends_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with display(quiet=False) as on_event:
        for done in (1, 4):
            on_event(Progress("student", done, 4, "steps"))
        on_event(Finished("distill", 1.0))
    with display(quiet=False) as on_event:
        for done in (1, 2):
            on_event(Progress("eval", done, 9, "images"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["student: 1/4 steps", "student: 4/4 steps", "distill: done in 1.0 s"]
    assert [line.partition(",")[0] for line in lines[3:]] == [
        "eval: 1/9 images",
        "eval: 2/9 images",
    ]


def test_many_short_phases_are_not_many_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(clock=lambda: now)
    for second in range(35):
        now = float(second)
        for step in (1, 2):
            lines(Progress(f"images {second}", step, 2, "steps"))
    assert len(capsys.readouterr().err.splitlines()) == 4  # at 0, 10, 20 and 30 seconds


def test_large_counts_are_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    terms = {"images": 1e6, "images/s": 12345.6, "l2": 10_000.0, "tv": 9999.0, "ce": math.inf}
    Lines()(Progress("invert", 1, 2, "steps", terms))
    line = "invert: 1/2 steps, images 1,000,000, images/s 1.235e+04, l2 10,000, tv 9999, ce inf\n"
    assert capsys.readouterr().err == line


def test_notes_and_hints_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for event in (Note("chosen"), Hint("look"), Finished("a", 1)):
        lines(event)
    assert capsys.readouterr().err.splitlines() == ["chosen", "hint: look", "a: done in 1.0 s"]


def test_a_stderr_that_is_gone_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    lines = Lines()
    lines(Note("nobody reads this"))
    lines(Note("nor this"))
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_off_a_terminal_and_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with display(quiet=False) as on_event:
        assert isinstance(on_event, Lines)
    with display(quiet=True) as on_event:
        assert on_event is ignore


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """A pseudo terminal: the descriptor to read from, and the stream that writes to it."""
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def show(terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> str:
    reader, stream = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with display(quiet=False) as on_event:
        assert isinstance(on_event, Bars)
        on_event(Hint("look at [this]"))
        on_event(Progress("images [0]", 8, 8, "steps"))
        on_event(Progress("images [1]", 3, 8, "steps", {"ce": 0.25}))
        on_event(Progress("images [1]", 4, 8, "steps", {"ce": 0.125}, 200.0))
        assert [task.description for task in on_event.bars.tasks] == ["images [1]"]
    on_event(Finished("images [1]", 2))
    monkeypatch.undo()
    text = b""
    while b" s\r\n" not in text:  # the end of the last line; a terminal gives what it has by then
        text += os.read(reader, 100_000)
    return text.decode()


def test_bars_on_a_terminal(terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    text = show(terminal, monkeypatch)
    assert "hint: look at [this]" in text
    assert "images [1]" in text
    assert "4/8 steps" in text
    assert "3 min 20 s left in all" in text
    assert "ce 0.125" in text
    assert "\x1b[33m" in text  # hints are yellow
    assert text.rstrip().endswith("images [1]: done in 2.0 s")


def lines_at(width: int, monkeypatch: pytest.MonkeyPatch, *seen: Progress) -> list[str]:
    """What a terminal of so many columns shows of phases that are under way."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    bars = Bars(_new_bars())
    for event in seen:
        bars(event)
    console = Console(width=width, force_terminal=True, no_color=True)
    with console.capture() as captured:
        console.print(bars.bars.get_renderable())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", captured.get())
    return [line.rstrip() for line in plain.splitlines()]


TERMS = {"ce": 1.27, "tv_l2": 0.1646, "competition": 0.9961, "r_feature": 0.6612}


@pytest.mark.parametrize(
    ("width", "bar", "terms"),
    [
        (160, 24, " ce 1.27  tv_l2 0.1646  competition 0.9961  r_feature 0.6612"),
        (120, 24, " ce 1.27  tv_l2 0.1646  competition 0.9961 …"),
        (80, 24, " ce 1.27 …"),  # 8 + 24 + 11 + 22 and four spaces leave 11
        (70, 24, ""),
        (60, 15, ""),
        (49, 4, ""),
    ],
)
def test_terms_give_way_before_the_bar(
    width: int, bar: int, terms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = lines_at(width, monkeypatch, Progress("images 3", 40, 40, "steps", TERMS, 200.0))
    assert line == f"images 3 {'━' * bar} 40/40 steps 3 min 20 s left in all{terms}"


def test_a_name_gives_way_to_count_and_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "the border of the views of a model whose name is long"
    (line,) = lines_at(60, monkeypatch, Progress(name, 25, 40, "steps", TERMS, 7.9))
    assert line == "the border of the views of a… 25/40 steps 7.9 s left in all"
    (line,) = lines_at(90, monkeypatch, Progress(name, 40, 40, "steps", TERMS, 7.9))
    assert line.startswith(f"{name} ━━")
    assert line.endswith("━ 40/40 steps 7.9 s left in all")


def test_phases_side_by_side_are_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    student = Progress("student", 300, 6000, "steps", {"kd": 1.25}, 7.9)
    lines = lines_at(90, monkeypatch, student, Progress("images 3", 9, 40, "steps", TERMS))
    # 8 for names, 24 for bars, 15 for counts, 17 for times, and a space after each
    assert [line.index(" steps ") for line in lines] == [43, 39]
    assert [lines[0].index("kd 1"), lines[1].index("ce 1")] == [68, 68]


@pytest.mark.parametrize("width", [1, 2, 5, 20, 40])
def test_of_few_columns_a_phase_still_takes_one_line(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = Progress("images 3", 9, 40, "steps", TERMS, 7.0)
    assert len(lines_at(width, monkeypatch, under_way)) == len(lines_at(width, monkeypatch)) == 1


def test_no_color_is_honoured(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in show(terminal, monkeypatch)


def test_a_dumb_terminal_gets_lines(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal[1])
    monkeypatch.setenv("TERM", "dumb")
    with display(quiet=False) as on_event:
        assert isinstance(on_event, Lines)


def test_a_lost_terminal_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with display(quiet=False) as on_event:
        assert isinstance(on_event, Bars)
        on_event(Progress("images", 1, 8, "steps"))
        os.close(reader)
        on_event(Note("nobody reads this"))
        on_event(Progress("images", 2, 8, "steps"))
        on_event.bars.refresh()  # what rich's thread calls
        print("nor this", file=sys.stderr, flush=True)
        on_event(Finished("images", 2))
    monkeypatch.undo()
    with pytest.raises(OSError, match="Input/output error"):
        stream.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3600, "1 h 00 min"),
        (86400 + 7200, "1 d 2 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
