"""Processes that end from outside: killed, they continue to the same end; asked, they save."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.reliability import kills

pytestmark = pytest.mark.slow

LONG = kills.INVERT.replace("--image-steps 60", "--image-steps 600")


@pytest.mark.parametrize("job", kills.JOBS)
def test_killed_at_random_moments_it_ends_as_if_never_killed(job: str, tmp_path: Path) -> None:
    assert kills.hunt(kills.JOBS[job], tmp_path, kills=5).ends >= 1


@pytest.fixture
def working(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of a batch."""
    process = kills.start(LONG, tmp_path / "run")
    while not (tmp_path / "run" / "progress.json").exists():
        assert process.poll() is None
        time.sleep(0.1)  # another process: there is nothing to wait on but its file
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    working: subprocess.Popen[bytes], number: int, code: int
) -> None:
    working.send_signal(number)
    output, _ = working.communicate(timeout=60)
    assert working.returncode == code, output.decode()
    assert "the same command continues" in output.decode()


def test_asked_twice_it_stops_at_once(working: subprocess.Popen[bytes]) -> None:
    working.send_signal(signal.SIGINT)
    working.send_signal(signal.SIGINT)
    output, _ = working.communicate(timeout=20)
    assert working.returncode == 130, output.decode()
    assert "Traceback" not in output.decode()
