"""Mutated files of strangers: one line of ours or the true content, never anything else.

    python -m tests.reliability.fuzz --checkpoints 2000 --runs 2000 --states 2000

Checkpoints, of safetensors and of both torch formats, go through `models.load`. Of run folders one
file, a shard, the manifest or a class folder's record, is mutated; then the folder is read as data
and as a run. Whatever is not refused by a `DreamkdError` must give networks that run, and the very
pixels and labels that were written. A student's saved state is read as what it was or not at all.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dreamkd import formats, models
from dreamkd.data import Preprocessing, open_images, stack
from dreamkd.errors import DreamkdError, RunError
from dreamkd.inversion import invert
from dreamkd.runfolder import open_run
from tests.benchmarks.environment import describe
from tests.conftest import invert_config

#: No file may take longer, or more memory than this above what was there before.
SECONDS, MEMORY = 5.0, 2**30

#: Values at which parsers break.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(data: bytes, draws: random.Random) -> bytes:
    """`data` after one to four random changes."""
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        data = draws.choice(MUTATIONS)(data, draws)
    return data


def _place(data: bytes, draws: random.Random) -> int:
    """A position, mostly near the beginning or the end, where headers and directories are."""
    length = max(1, len(data))
    near = min(length, 4096)
    where = draws.random()
    if where < 0.4:
        return draws.randrange(near)
    return length - 1 - draws.randrange(near) if where < 0.6 else draws.randrange(length)


def _flip(data: bytes, draws: random.Random) -> bytes:
    at = _place(data, draws)
    return data[:at] + bytes([data[at] ^ 1 << draws.randrange(8)]) + data[at + 1 :] if data else b""


def _overwrite(data: bytes, draws: random.Random) -> bytes:
    at, size = _place(data, draws), draws.choice((1, 2, 4, 8))
    order = draws.choice(("little", "big"))
    value = draws.choice(_EDGES) % 256**size
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _cut(data: bytes, draws: random.Random) -> bytes:
    return data[: _place(data, draws)]


def _remove(data: bytes, draws: random.Random) -> bytes:
    at = _place(data, draws)
    return data[:at] + data[at + draws.choice((1, 7, 64, 512, 4096)) :]


def _repeat(data: bytes, draws: random.Random) -> bytes:
    at, size = _place(data, draws), draws.choice((1, 7, 64, 512, 4096))
    return data[:at] + data[at : at + size] * draws.choice((2, 3, 50)) + data[at + size :]


def _digit(data: bytes, draws: random.Random) -> bytes:
    """Change a number in text, such as a shape in a header or a count in a manifest."""
    places = [i for i, byte in enumerate(data[:8192]) if 48 <= byte <= 57]
    if not places:
        return data
    at = draws.choice(places)
    new = draws.choice((b"0", b"9", b"-1", b"99999999999999999999", b"1e999", b"null", b'"x"'))
    return data[:at] + new + data[at + 1 :]


def _swap(data: bytes, draws: random.Random) -> bytes:
    one, two = sorted((_place(data, draws), _place(data, draws)))
    size = min(draws.choice((8, 64, 512)), two - one)
    return (
        data[:one]
        + data[two : two + size]
        + data[one + size : two]
        + data[one : one + size]
        + data[two + size :]
    )


MUTATIONS = (_flip, _overwrite, _cut, _remove, _repeat, _digit, _swap)


class Late(BaseException):
    """Time is up; no `except Exception` between here and the test can take it for a refusal."""


@dataclass
class Tally:
    """How the files fared."""

    refused: Counter[str] = field(default_factory=Counter)  # by error class
    accepted: int = 0  # read, and what was read is right
    slowest: float = 0.0  # seconds
    before: int = field(default_factory=lambda: _fresh_peak())  # bytes

    @property
    def largest(self) -> int:
        """Bytes of the peak above what was there before the first file."""
        return _peak() - self.before

    @contextmanager
    def file(self, what: str) -> Iterator[None]:
        """Judge the handling of one file.

        Raises:
            Late: it took too long.
            AssertionError: it took too much memory, or more than one line.
        """

        def late(*_: object) -> None:
            raise Late(f"{what}: more than {SECONDS:g} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        began = time.monotonic()
        try:
            yield
            self.accepted += 1
        except DreamkdError as error:
            if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
                raise AssertionError(f"{what}: {error}") from error
            self.refused[type(error).__name__] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert self.largest < MEMORY, what


def _peak() -> int:
    """Bytes that lay in memory at most, since `_fresh_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _fresh_peak() -> int:
    """Bytes that lie in memory, which is the peak from now on."""
    with suppress(OSError):  # where the system keeps it for itself, what was before counts too
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def checkpoints(folder: Path, *, count: int, seed: int = 0) -> Tally:
    """Load mutated checkpoints of a small network."""
    network = models.create(
        "cifar_resnet8", num_classes=10, input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    good = folder / "good.safetensors"
    models.save(network, good)
    state = network.module.state_dict()
    torch.save({"state_dict": state, "arch": "cifar_resnet8"}, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    originals = [path.read_bytes() for path in sorted(folder.iterdir())]
    draws, tally = random.Random(seed), Tally()
    path = folder / "mutated"
    for i in range(count):
        kind = draws.randrange(len(originals))
        path.write_bytes(mutated(originals[kind], draws))
        options = {} if kind == 0 else {"arch": "cifar_resnet8"}
        with tally.file(f"checkpoint {i} of seed {seed}"):
            loaded = models.load(path, **options)
            channels, height, width = loaded.card.input_size
            if channels * height * width < 2**16:  # metadata may say any size that is legal
                with torch.no_grad():
                    loaded.module(torch.zeros(2, channels, height, width))
    return tally


def runs(folder: Path, *, count: int, seed: int = 0) -> Tally:
    """Read run folders of which one file is mutated."""
    truths = {}
    for form in ("shards", "folder"):
        out = folder / form
        invert(invert_config(out=str(out), format=form))
        truths[out] = _content(out)
    draws, tally = random.Random(seed), Tally()
    for i in range(count):
        run = draws.choice(sorted(truths))
        stored = [p for p in sorted(run.rglob("*")) if p.suffix in (".tar", ".jsonl", ".png")]
        file = draws.choice([p for p in stored if p.name != "contact-sheet.png"])
        good = file.read_bytes()
        file.write_bytes(mutated(good, draws))
        reader: Callable[[], object]
        for reader in (
            lambda run=run, file=file: _check(_content(run), truths[run], damaged=file),
            lambda run=run, file=file: _check(_data(run), truths[run], damaged=file),
            lambda run=run: _open(run),
        ):
            with tally.file(f"{file.name}, file {i} of seed {seed}"):
                reader()
        file.write_bytes(good)
    return tally


def states(folder: Path, *, count: int, seed: int = 0) -> Tally:
    """Load mutated states of a run."""
    tensors = {"student.weight": torch.arange(600.0).view(20, 30), "step.weight": torch.tensor(7)}
    facts = {"step": 7, "seconds": 0.5}
    with open_run(folder / "run") as run:
        run.save_state("student", tensors, facts)
        path = folder / "run" / "state-student.safetensors"
        good, draws, tally = path.read_bytes(), random.Random(seed), Tally()
        for i in range(count):
            path.write_bytes(mutated(good, draws))
            with tally.file(f"state {i} of seed {seed}"):
                found = run.load_state("student")
                if found is None:
                    raise RunError("damaged")
                assert found[1] == facts
                assert found[0].keys() == tensors.keys()
                assert all(torch.equal(found[0][name], tensors[name]) for name in tensors)
    return tally


def _content(run: Path) -> list[tuple[Tensor, int]]:
    return [(image, label) for image, label, _ in formats.read_run(run)]


def _data(run: Path) -> list[tuple[Tensor, int]]:
    images, labels = stack(
        open_images(str(run), preprocessing=Preprocessing(input_size=(1, 16, 16)))
    )
    return list(zip(images, labels.tolist(), strict=True))


def _check(
    found: list[tuple[Tensor, int]], truth: list[tuple[Tensor, int]], *, damaged: Path
) -> None:
    """What is read must be true, and all of it; a manifest's torn end may cost the last batches."""
    for (image, label), (true_image, true_label) in zip(found, truth, strict=False):
        assert torch.equal(image, true_image)
        assert label == true_label
    assert len(found) == len(truth) or (damaged.suffix == ".jsonl" and len(found) < len(truth))


def _open(run: Path) -> None:
    with open_run(run) as opened:
        assert opened.images >= 0


def main() -> None:
    """Print one row for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--states", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{describe()}; seed {arguments.seed}\n")
    print("| files | mutated | read, and right | refused | slowest | peak above the start |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, fuzz in (("checkpoints", checkpoints), ("runs", runs), ("states", states)):
        count = getattr(arguments, name)
        if count:
            with tempfile.TemporaryDirectory() as folder:
                tally = fuzz(Path(folder), count=count, seed=arguments.seed)
            refused = ", ".join(f"{n} {kind}" for kind, n in tally.refused.most_common())
            print(
                f"| {name} | {count} | {tally.accepted} | {refused} | {tally.slowest:.2f} s | "
                f"{tally.largest / 2**20:.0f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
