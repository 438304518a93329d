"""A disk that fails, at any write: one line, nothing torn, and the same command goes on."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamkd import clock, manifest, shards
from dreamkd.distillation import distill
from dreamkd.errors import RunError
from dreamkd.inversion import invert
from tests.conftest import distill_config, invert_config
from tests.reliability.kills import facts


def run_invert(folder: Path) -> None:
    invert(invert_config(out=str(folder), per_class=6, image_steps=1, r_feature=1.0))


def run_distill(folder: Path) -> None:
    distill(distill_config(out=str(folder), image_steps=1, r_feature=1.0, steps=6, warmup=0))


class FullDisk:
    """Lets so many writes be made durable, then none; counts those that are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: float, number: int) -> None:
        self.asked = 0
        fsync = os.fsync

        def fails(handle: int) -> None:
            self.asked += 1
            if self.asked > room:
                raise OSError(number, os.strerror(number))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.parametrize(
    ("work", "number", "first"),
    [
        (run_invert, errno.ENOSPC, 0),
        (run_invert, errno.EIO, 1),
        pytest.param(run_distill, errno.EDQUOT, 0, marks=pytest.mark.slow),
        pytest.param(run_distill, errno.ENOSPC, 1, marks=pytest.mark.slow),
    ],
)
def test_whichever_write_fails_it_is_one_line_and_the_same_command_goes_on(
    work: Callable[[Path], None],
    number: int,
    first: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        counter = FullDisk(patch, float("inf"), number)
        work(tmp_path / "whole")
    assert counter.asked > 10
    for room in range(first, counter.asked, 2):  # the other half with another error
        folder = tmp_path / str(room)
        with monkeypatch.context() as patch:
            FullDisk(patch, room, number)
            with pytest.raises(RunError, match=rf"{os.strerror(number)}") as caught:
                work(folder)
        assert "\n" not in str(caught.value)
        if (folder / "manifest.jsonl").exists():
            for name, shard in manifest.read(folder / "manifest.jsonl").items():
                shards.verify(folder / "shards" / name, shard)
        assert not list(folder.rglob("*.part"))
        work(folder)
        assert facts(folder) == facts(tmp_path / "whole")
        shutil.rmtree(folder)


def carry_invert(folder: Path) -> None:
    generated = {"images": "generator", "image_steps": 1, "refine_steps": 0}
    invert(invert_config(out=str(folder), per_class=4, image_batch_size=10, **generated))


def carry_distill(folder: Path) -> None:
    generated = {"recipe": "generator", "image_steps": 1, "refine_steps": 0}
    distill(distill_config(out=str(folder), rounds=3, steps=6, warmup=0, **generated))


class BadMoment:
    """Fails to put one file in its place, the n-th of a name, and no other; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ending: str, n: float) -> None:
        self.asked = 0
        replace = os.replace

        def fails(source: Path, target: Path) -> None:
            if str(target).endswith(ending) and target.name != "progress.json":  # for watchers
                self.asked += 1
                if self.asked == n:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        monkeypatch.setattr(os, "replace", fails)


@pytest.mark.parametrize(
    ("work", "ending"),
    [
        (carry_invert, ""),
        pytest.param(carry_distill, "seconds.json", marks=pytest.mark.slow),
        pytest.param(carry_distill, "contact-sheet.png", marks=pytest.mark.slow),
    ],
)
def test_what_batches_hand_on_is_never_ahead_of_those_that_are_kept(
    work: Callable[[Path], None], ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that learned from a batch that was not kept would learn from it twice."""
    monkeypatch.setattr(clock, "_RATIO", 1e9)  # the first batch hands its state on, then a stop
    with monkeypatch.context() as patch:
        counter = BadMoment(patch, ending, float("inf"))
        work(tmp_path / "whole")
    assert counter.asked > 1  # the page, with the first batch and in the end
    for n in range(1, counter.asked + 1):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patch:
            BadMoment(patch, ending, n)
            with pytest.raises(RunError, match="No space left on device"):
                work(folder)
        work(folder)
        assert facts(folder) == facts(tmp_path / "whole"), n


def unshare(*command: str) -> subprocess.CompletedProcess[str]:
    """Run as root of a namespace of its own, where file systems can be mounted."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


REAL_DISK = """
mount -t tmpfs -o size=40k tmpfs $0 || exit 99
dreamkd() {{ {python} -m dreamkd.cli invert digits_resnet14 --per-class 6 --image-steps 1 \
    --r-feature 1 --image-batch-size 20 --device cpu --threads 1 --precision fp32 --compile off \
    --quiet --out $0/run; }}
dreamkd; echo $?                      # not enough room, known beforehand
head -c 40k /dev/zero > $0/filler 2> /dev/null
dreamkd; echo $?                      # no room at all, not even for a name in the lock
rm $0/filler
mount -o remount,size=10m tmpfs $0
( ulimit -f 20; dreamkd ); echo $?    # no file above 20 KiB: the first shard is larger
mount -o remount,ro tmpfs $0
dreamkd; echo $?                      # read-only
mount -o remount,rw tmpfs $0
dreamkd > /dev/null; echo $?
cp -r $0/run $1
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or unshare("true").returncode != 0,
    reason="needs unprivileged mounts",
)
def test_a_disk_that_is_full_limited_or_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = REAL_DISK.format(python=sys.executable)
    done = unshare("bash", "-c", script, str(disk), str(tmp_path / "copy"))
    assert done.stdout.split() == ["6", "6", "6", "6", "0"], done.stderr
    room, none, large, frozen = done.stderr.splitlines()
    assert "will be written and 36 KiB are free" in room
    assert "will be written and 0 bytes are free" in none
    assert "shard-000000.tar: File too large; free some room" in large
    assert "Read-only file system" in frozen
    run_invert(tmp_path / "whole")
    assert facts(tmp_path / "copy") == facts(tmp_path / "whole")
