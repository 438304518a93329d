"""Workers that no torchrun watches over, as cluster schedulers start them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

#: Six batches of so many steps each.
COMMAND = (
    *("invert", "digits_resnet14", "--per-class", "6", "--image-batch-size", "10"),
    *("--device", "cpu", "--threads", "1", "--precision", "fp32", "--compile", "off"),
    *("--out", "run", "--image-steps"),
)

Pair = tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]


@contextmanager
def pair(leaders: Path, workers: Path, *arguments: str) -> Iterator[Pair]:
    """A leader and a worker in folders of their own, which end with the block."""
    with socket.create_server(("localhost", 0)) as free:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dreamkd", *arguments],
            cwd=folder,
            env={**os.environ, **place, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank, folder in (("0", leaders), ("1", workers))
    ]
    try:
        yield processes[0], processes[1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "dreamkd", *arguments], cwd=folder, capture_output=True, check=False
    )


def until(condition: Callable[[], bool], *processes: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, said = process.communicate(timeout=240)
    return process.returncode, said.decode()


def test_what_the_leader_refuses_all_refuse_and_one_says(tmp_path: Path) -> None:
    with pair(tmp_path, tmp_path, "invert", "no_such_network") as (leader, worker):
        code, said = ended(leader)
        assert (code, said.count("no model named 'no_such_network'")) == (3, 1)
        assert ended(worker) == (3, "")


def test_a_worker_in_a_copy_of_the_folder_is_refused(tmp_path: Path) -> None:
    """It would make its share where the leader does not see it."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    assert alone(here, *COMMAND, "1", "--quiet").returncode == 0
    shutil.copytree(here, there)
    (here / "run" / "shards" / "shard-000003.tar").unlink()
    with pair(here, there, *COMMAND, "1") as (leader, worker):
        code, said = ended(worker)
        assert (code, "all workers need the same folder" in said) == (6, True)
        code, said = ended(leader)
        assert (code, "stopped: another worker has ended" in said) == (8, True)
    assert not (here / "run" / "result.json").exists()


def test_one_that_is_asked_to_stop_stops_all_soon(tmp_path: Path) -> None:
    shards = tmp_path / "run" / "shards"
    with pair(tmp_path, tmp_path, *COMMAND, "60") as (leader, worker):
        until((shards / "shard-000001.tar").exists, leader, worker)
        worker.terminate()
        assert ended(worker)[0] == 143
        code, said = ended(leader)
        assert code == 8
        assert said.count("the same command continues") == 1
    assert len([*shards.iterdir()]) < 6
    assert alone(tmp_path, *COMMAND, "60", "--quiet").returncode == 0


def test_one_that_waits_for_the_others_ends_when_told_twice(tmp_path: Path) -> None:
    with pair(tmp_path, tmp_path, *COMMAND, "60") as (leader, worker):
        until((tmp_path / "run" / "shards" / "shard-000001.tar").exists, leader, worker)
        leader.send_signal(signal.SIGSTOP)
        time.sleep(3)  # its looks into the leader's store hang by now
        worker.terminate()
        time.sleep(5)
        worker.terminate()
        assert ended(worker)[0] == 143


def test_nobody_begins_while_one_of_an_earlier_start_is_at_work(tmp_path: Path) -> None:
    """It would write its batches into what is a run of others by then."""
    with pair(tmp_path, tmp_path, *COMMAND, "60") as (leader, worker):
        until((tmp_path / "run" / "shards" / "shard-000001.tar").exists, leader, worker)
        worker.send_signal(signal.SIGSTOP)
        leader.kill()
        leader.wait()
        refused = alone(tmp_path, *COMMAND, "60")
        assert refused.returncode == 6
        assert b"in use by a worker of an earlier start" in refused.stderr
        worker.send_signal(signal.SIGCONT)
        code, said = ended(worker)
        assert (code, "another worker has ended" in said) == (8, True)
    assert alone(tmp_path, *COMMAND, "60", "--quiet").returncode == 0
    lines = (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["batch"] for line in lines] == [*range(6)]
