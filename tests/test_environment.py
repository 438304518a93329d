"""Whole commands as CI runs them: no home, no caches, no terminal, another locale, odd paths."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.kills import facts

pytestmark = pytest.mark.slow

PLAIN = "--device cpu --threads 1 --precision fp32"
INVERT = f"invert digits_resnet14 --per-class 4 --image-steps 2 --image-batch-size 20 {PLAIN}"
DISTILL = (
    "distill --teacher digits_resnet14 --student cifar_resnet8 --image-steps 2 --rounds 1 --steps 4"
    f" --first-batches 1 --image-batch-size 20 --batch-size 16 --eval-data sklearn:digits {PLAIN}"
)

#: No folder can be made there, whoever asks.
NOWHERE = "/proc/nowhere"
CACHES = ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "usual": {},
    "bare and ascii": {
        **dict.fromkeys(("HOME", "USER", "LOGNAME", "TERM", "LANG")),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "NO_COLOR": "1",
    },
    "frozen caches": {"HOME": NOWHERE, **dict.fromkeys(CACHES, NOWHERE)},
}


def run(
    command: str, out: str, place: Path, *, environment: str = "usual", redirect: str = "<&-"
) -> subprocess.CompletedProcess[bytes]:
    """Run a command under `sh` in `place`, with stdin closed."""
    changed = {**os.environ, **ENVIRONMENTS[environment]}
    script = f'exec "$0" -m dreamkd.cli "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", script, sys.executable, *command.split(), "--out", out],
        cwd=place,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("usual")
    for name, command in (("invert", INVERT), ("distill", DISTILL)):
        done = run(f"{command} --compile off", name, place)
        assert done.returncode == 0, done.stderr.decode()
    return place


@pytest.mark.parametrize("environment", [name for name in ENVIRONMENTS if name != "usual"])
@pytest.mark.parametrize("command", [INVERT, DISTILL], ids=["invert", "distill"])
def test_the_environment_changes_nothing(
    command: str, environment: str, usual: Path, tmp_path: Path
) -> None:
    out = "Bäume und Straße/模型 1"
    (tmp_path / out).parent.mkdir()
    done = run(f"{command} --compile off --json", out, tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert isinstance(json.loads(done.stdout.decode("ascii")), dict)
    assert b"\x1b" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert facts(tmp_path / out) == facts(usual / command.split()[0])


def test_quiet_is_silent_and_two_outputs_may_be_closed(usual: Path, tmp_path: Path) -> None:
    done = run(f"{INVERT} --compile off --quiet", "quiet", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
    done = run(f"{INVERT} --compile off", "closed", tmp_path, redirect="<&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert facts(tmp_path / "closed") == facts(usual / "invert")


def test_where_nothing_can_be_cached_it_still_compiles_or_says_why_not(tmp_path: Path) -> None:
    done = run(f"{INVERT} --compile on", "run", tmp_path, environment="frozen caches")
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"TORCHINDUCTOR_CACHE_DIR /proc/nowhere cannot be written" in done.stderr
    assert b"compile on" in done.stderr
    compiler = any(map(shutil.which, ("g++", "c++", "clang++")))
    assert (b"running without torch.compile" in done.stderr) is not compiler


@pytest.mark.parametrize("command", ["invert", "distill"])
def test_the_settings_of_a_run_make_the_same_run(command: str, usual: Path, tmp_path: Path) -> None:
    done = run(f"{command} --config {usual / command / 'resolved.json'}", "again", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    first, again = facts(usual / command), facts(tmp_path / "again")
    assert first.keys() == again.keys()
    differing = {name for name in first if first[name] != again[name]}
    assert differing <= {"resolved.json"}  # `requested` there is now what was decided then
