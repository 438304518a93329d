"""Several processes, as torchrun starts them, and one by itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkd import distillation, models, rendezvous, states
from dreamkd.cli import main
from dreamkd.distributed import Workers, _missed
from dreamkd.errors import ConfigError, RunError, Stopped
from dreamkd.events import Event, Hint
from dreamkd.inversion import _refuse_to_share
from dreamkd.materials import Materials
from dreamkd.networks import Own
from tests.conftest import distill_config, invert_config
from tests.reliability import kills

ENVIRONMENT = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}
MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
ONE_TWO = ("one", "two")
QUICK, LONG = kills.invert(steps=3), kills.invert(steps=100)


def surroundings(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in (*ENVIRONMENT, *MASTER):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_torchrun_says_who_a_worker_is(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings(monkeypatch, ENVIRONMENT | MASTER)
    workers = Workers.of_environment()
    assert workers == Workers(rank=1, world_size=3, local_rank=1)
    assert not workers.leads


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings(monkeypatch, {"WORLD_SIZE": "8", "RANK": "1"})  # some schedulers set these
    assert Workers.of_environment() == Workers()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "x"}, "RANK=x"),
        ({"RANK": "-1", "LOCAL_RANK": ""}, "RANK=-1, LOCAL_RANK="),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0"),
        ({"MASTER_PORT": "port"}, "MASTER_PORT=port"),
        ({"RANK": "3"}, "RANK=3, WORLD_SIZE=3"),
    ],
)
def test_variables_that_torchrun_does_not_set_so_are_one_line(
    given: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    surroundings(monkeypatch, ENVIRONMENT | MASTER | given)
    assert main(["invert", "digits_resnet14"]) == 2
    line = f"{said}: not as torchrun sets it; unset RANK to run one process"
    assert capsys.readouterr().err == f"dreamkd: error: {line}\n"


def test_a_worker_without_a_leader_says_so_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings(monkeypatch, ENVIRONMENT | MASTER)  # where nobody listens
    monkeypatch.setattr(rendezvous, "_SILENT", 0.2)
    monkeypatch.setattr(rendezvous, "_LIMIT", 0.4)
    heard: list[Event] = []
    with pytest.raises(ConfigError, match=r"no sign of the leader .*unset RANK to run one"):
        Workers.of_environment().joined(heard.append).__enter__()
    assert heard == [Hint("worker 1: waiting for the leader (Connection refused) at localhost:1")]


def test_a_port_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        said = {"99999": r"a port is 1\.\.65535", str(taken.getsockname()[1]): "EADDRINUSE.* free"}
        for port, line in said.items():
            surroundings(monkeypatch, ENVIRONMENT | MASTER | {"RANK": "0", "MASTER_PORT": port})
            with pytest.raises(ConfigError, match=line):
                Workers.of_environment().joined().__enter__()


def test_no_thread_of_the_group_outlives_the_job() -> None:
    """One that does may abort the process at its end; imports within the job must not keep it."""
    with socket.create_server(("", 0)) as free:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    job = """if True:
        import os
        from torch import distributed
        from dreamkd.rendezvous import meet
        meet(0, 1, print)
        import torch._dynamo
        threads = len(os.listdir("/proc/self/task"))
        distributed.destroy_process_group()
        print(threads, len(os.listdir("/proc/self/task")))"""
    command = [sys.executable, "-c", job]
    output = subprocess.check_output(command, env=os.environ | place | {"OMP_NUM_THREADS": "1"})
    within, after = map(int, output.split())  # nor has gloo a say on stdout
    assert within > after == 1


@pytest.mark.slow
def test_a_lonely_leader_hears_sigterm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    surroundings(monkeypatch, ENVIRONMENT | MASTER | {"RANK": "0", "MASTER_PORT": str(port)})
    process = kills.start(QUICK, tmp_path / "run")
    with socket.socket() as seen:
        while seen.connect_ex(("localhost", port)):
            assert process.poll() is None
            time.sleep(0.1)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_the_shares_make_up_the_whole() -> None:
    shares = [Workers(rank=rank, world_size=3).share(range(8)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.parametrize(("seen", "device"), [(4, "cuda:1"), (1, "cuda:0")])
def test_every_worker_has_a_gpu_of_its_own(
    seen: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those of the machine, or the one that its launcher shows it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    worker = Workers(rank=5, world_size=8, local_rank=1)
    assert [worker.device("cuda:0"), worker.device("cpu")] == [device, "cpu"]


def test_one_that_was_to_have_others_is_told_that_it_works_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[Event] = []
    surroundings(monkeypatch, {"WORLD_SIZE": "2", "RANK": "1"} | MASTER)
    with Workers.of_environment().joined(heard.append):
        pass
    line = "WORLD_SIZE is 2, but without LOCAL_RANK this process works by itself"
    assert heard == [Hint(line)]


def test_a_process_alone_computes_where_it_was_told() -> None:
    assert [Workers().device(name) for name in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]


def test_alone_it_hears_itself_and_stops_by_itself() -> None:
    alone = Workers()
    with alone.joined():
        assert alone.broadcast("what it said") == "what it said"
        with pytest.raises(Stopped, match="asked"), alone.together():
            raise Stopped("asked")


@pytest.mark.parametrize("command", ["inspect digits_resnet14", "eval digits_resnet14 --data x"])
def test_what_is_the_work_of_one_process_is_refused_to_several(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surroundings(monkeypatch, ENVIRONMENT | MASTER)
    assert main(command.split()) == 2
    assert "is the work of one process" in capsys.readouterr().err


def spoken(command: str, out: Path, *, workers: int) -> bytes:
    """What the processes of a command say that comes to its end."""
    process = kills.start(command.replace(" --quiet", " --json"), out, workers=workers)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    return output


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images, made by one process."""
    folder = tmp_path_factory.mktemp("images") / "run"
    kills.finish(kills.start(QUICK, folder))
    return folder


def test_two_workers_end_with_the_files_of_one(images: Path, tmp_path: Path) -> None:
    output = spoken(QUICK, tmp_path / "two", workers=2)
    assert output.count(b'"teacher_top1"') == 1  # the leader speaks for all
    assert kills.facts(tmp_path / "two") == kills.facts(images)


def test_two_workers_train_one_student(images: Path, tmp_path: Path) -> None:
    """On the views of one process, of which the teacher says the same."""
    command = kills.learn(images, options="--store-labels 10 --eval-data sklearn:digits")
    output = spoken(command, tmp_path / "two", workers=2)
    assert output.count(b'"student_top1"') == 1
    assert b"2 workers" in output
    spoken(command, tmp_path / "one", workers=0)
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ONE_TWO)
    assert two["steps"] == one["steps"] == 60
    assert two["student_top1"] == pytest.approx(one["student_top1"], abs=15)
    assert two["noise_top1"] is not None
    labels = [states.read(tmp_path / n / "labels/steps-00000000.safetensors")[0] for n in ONE_TWO]
    assert labels[0]["log_prob"].shape == (60, 32, 10)
    assert torch.equal(labels[0]["classes"].sort(-1)[0], labels[1]["classes"].sort(-1)[0])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    kills.finish(kills.start(LONG, folder))
    return folder


def end(launcher: subprocess.Popen[bytes], victim: str) -> None:
    """End the leader, the worker beside it, or all, who must say that they can be continued."""
    if victim == "all":
        launcher.send_signal(signal.SIGTERM)
    else:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[victim == "worker"]), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode != 0
    assert b"the same command continues" in output


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "later"), [("all", 0), ("worker", 3), ("leader", 0)])
def test_workers_that_were_ended_continue_to_the_same_end(
    victim: str, later: int, one: Path, tmp_path: Path
) -> None:
    """With more of them than before, or by one process alone."""
    folder = tmp_path / "several"
    launcher = kills.start(LONG, folder, workers=2)
    while not list(folder.glob("shards/*.tar")):
        assert launcher.poll() is None
        time.sleep(0.1)  # other processes: there is nothing to wait on but their files
    end(launcher, victim)
    assert not (folder / "result.json").exists()
    kills.finish(kills.start(LONG, folder, workers=later))
    assert kills.facts(folder) == kills.facts(one)


@pytest.fixture(scope="module")
def learned(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A command that trains a student, and what two workers made of it."""
    command, folder = kills.learn(images, steps=300), tmp_path_factory.mktemp("learned") / "run"
    kills.finish(kills.start(command, folder, workers=2))
    return command, folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["all", "worker", "leader"])
def test_a_student_whose_workers_were_ended_continues_to_the_same_end(
    victim: str, learned: tuple[str, Path], tmp_path: Path
) -> None:
    (command, whole), folder = learned, tmp_path / "several"
    launcher = kills.start(command, folder, workers=2)
    while not (folder / "events.jsonl").exists():
        assert launcher.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    end(launcher, victim)
    assert not (folder / "result.json").exists()
    process = kills.start(command, folder)
    output, _ = process.communicate(timeout=300)
    assert b"workers 2, which is now 1" in output
    kills.finish(kills.start(command, folder, workers=2))
    assert kills.facts(folder) == kills.facts(whole)


def test_workers_of_other_materials_are_refused() -> None:
    teacher = models.load("digits_resnet14")
    config = replace(distill_config(), seed=0)
    materials = Materials.load(config, Own(teacher))
    identity = materials.identity(config) | {"workers": 2}
    Workers(1, 2).require_same(materials.identity(config), identity)
    other = Materials.load(replace(config, seed=1), Own(teacher))  # another fresh student
    with pytest.raises(RunError, match="worker 1: student_sha256 differ"):
        Workers(1, 2).require_same(other.identity(config), identity)


@pytest.mark.parametrize(
    ("given", "workers", "said"),
    [
        ({}, 3, "--batch-size 16: is no multiple of 3 workers"),
        ({}, 16, "of two images at least"),
        ({"device": "cuda:1"}, 2, "each worker takes its own"),
        ({"recipe": "adaptive"}, 2, "make them first with dreamkd invert"),
    ],
)
def test_what_several_processes_cannot_learn_is_refused(
    given: dict[str, object], workers: int, said: str
) -> None:
    config = replace(distill_config(), **{"recipe": "offline", **given})
    distillation._refuse_to_share(config, Workers())
    with pytest.raises(ConfigError, match=said):
        distillation._refuse_to_share(config, Workers(world_size=workers))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": "generator"}, "depends on those before it"),
        ({"bn_momentum": 0.5}, "so run one process"),
        ({"device": "cuda:1"}, "each worker takes its own"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(given: dict[str, object], said: str) -> None:
    settled = {"bn_momentum": 0.0, "images": "pixels"}
    config = replace(invert_config(), **{**settled, **given})
    _refuse_to_share(config, Workers())
    with pytest.raises(ConfigError, match=said):
        _refuse_to_share(config, Workers(world_size=2))


@pytest.mark.slow
def test_a_refusal_reaches_every_process(tmp_path: Path) -> None:
    command = kills.invert(options="--images generator")
    process = kills.start(command, tmp_path / "run", workers=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "depends on those before it" in output.decode()
    assert not (tmp_path / "run").exists()


def test_a_worker_promises_nothing_that_another_may_have_refused() -> None:
    line = r"is not reached; unless it says why, .* the same command continues \(gone\)$"
    with pytest.raises(Stopped, match=line), _missed():
        raise RuntimeError("gone\nsomewhere")
    with pytest.raises(torch.OutOfMemoryError), _missed():
        raise torch.OutOfMemoryError("of this one, which can say what to do")
