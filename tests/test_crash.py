"""Processes that end from outside: killed, they continue to the same end; asked, they save."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.reliability import kills

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("listening")]

LONG = kills.invert(steps=600)


@pytest.mark.parametrize("job", kills.JOBS)
def test_killed_at_a_random_moment_it_ends_as_if_never_killed(job: str, tmp_path: Path) -> None:
    """Once, each kind of job; `python -m tests.reliability.kills` kills as often as is asked."""
    tally = kills.hunt(kills.JOBS[job], tmp_path, kills=1)
    assert tally.changes[0] > 0  # it had written something


def at_work(command: str, out: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of a batch."""
    process = kills.start(command, out)
    while not (out / "progress.json").exists():
        assert process.poll() is None
        time.sleep(0.1)  # another process: there is nothing to wait on but its file
    return process


@pytest.fixture
def working(tmp_path: Path) -> subprocess.Popen[bytes]:
    return at_work(LONG, tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    working: subprocess.Popen[bytes], number: int, code: int
) -> None:
    working.send_signal(number)
    output, _ = working.communicate(timeout=60)
    assert working.returncode == code, output.decode()
    assert "the same command continues" in output.decode()


def test_asked_twice_it_stops_at_once(tmp_path: Path) -> None:
    """In the middle of a long step, after which the first signal would have been enough."""
    huge = "--per-class 100 --image-batch-size 1000 --image-chunk 1000 --r-feature 1"
    command = LONG.replace("--per-class 12", huge).replace("--image-batch-size 20 ", "")
    process = at_work(command, tmp_path / "run")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    said = iter(process.stdout.readline, b"")
    assert any(b"once more stops at once" in line for line in said)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.decode().splitlines()[-1] == "dreamkd: interrupted"
