"""Where the compiler's cache goes when it cannot be where it should."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dreamkd.cli.caches import settle_compiler_cache
from dreamkd.errors import RunError
from dreamkd.events import Event, Hint

NOWHERE = "/proc/nowhere"  # where nobody can make a folder, nor root

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files; the user's cache is beside it, no variable is set."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("getpass.getuser", lambda: "a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"):  # set first, so that both are put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return folder


def settled(**options: Any) -> tuple[str | None, list[str]]:
    """What torch is told, and what the user is."""
    said: list[Event] = []
    settle_compiler_cache(said.append, **options)
    assert all(isinstance(event, Hint) for event in said)
    texts = [event.text for event in said if isinstance(event, Hint)]
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR"), texts


def test_a_folder_that_can_be_written_stays(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settled() == (None, [])
    assert (temporary / "torchinductor_a_b").is_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "asked"))
    assert settled() == (str(tmp_path / "asked"), [])


def test_another_place_is_found_one_after_the_other(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", NOWHERE)
    refused = f"TORCHINDUCTOR_CACHE_DIR {NOWHERE} cannot be written; the default is used"
    assert settled() == (None, [refused])
    default = temporary / "torchinductor_a_b"
    default.rmdir()
    default.touch()  # in the way
    ours = str(tmp_path / "cache" / "dreamkd" / "inductor")
    why = f"{default} cannot be written"
    assert settled() == (ours, [f"compiled code is kept in {ours}: {why}"])
    assert Path(ours).is_dir()
    for cache, home in ((NOWHERE, "/"), ("", "/proc"), ("relative", str(tmp_path))):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setenv("HOME", home)
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.chdir(tmp_path)
        passing, said = settled()
        assert passing is not None
        assert passing.startswith(str(temporary / "dreamkd-inductor-"))
        assert said == [f"compiled code is kept in {passing}: {why}"]
    assert not (tmp_path / "relative").exists()


def test_without_a_folder_for_temporary_files(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    ours, _ = settled()
    assert ours == os.environ["TMPDIR"] == str(tmp_path / "cache" / "dreamkd" / "inductor")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE)
    assert settled(needed=False) == (None, [])
    with pytest.raises(RunError, match="no folder for compiled code can be written"):
        settled()


def test_torch_would_take_the_same_place(temporary: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    settled()
    assert [str(path) for path in temporary.iterdir()] == [default_cache_dir()]


def test_what_is_passing_is_removed_when_the_process_ends(tmp_path: Path) -> None:
    code = (
        "import os; from dreamkd.cli.caches import settle_compiler_cache\n"
        "settle_compiler_cache(print)\n"
        "assert os.path.isdir(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    (tmp_path / "torchinductor_me").touch()
    env = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": NOWHERE, "LOGNAME": "me"}
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path}/dreamkd-inductor-" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["torchinductor_me"]
