"""Reading and writing weights: what is accepted, and one line for everything hostile."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from dreamkd import checkpoint
from dreamkd.errors import ModelError


def weights() -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -2.0])}


def assert_same(state: dict[str, torch.Tensor]) -> None:
    assert state.keys() == weights().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights().items())


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.load_state_dict(weights())


NAMESPACE = argparse.Namespace(model="resnet18", lr=0.1)
CONTENTS = {
    "plain": (weights(), "", ""),
    "timm": (
        {
            "arch": "resnet18",
            "state_dict": {k: 0 * v for k, v in weights().items()},
            "state_dict_ema": weights(),
            "args": NAMESPACE,
            "epoch": 3,
        },
        "state_dict_ema",
        "resnet18",
    ),
    "torchvision": (
        {"model": weights(), "optimizer": {"state": {}}, "args": NAMESPACE, "epoch": 3},
        "model",
        "resnet18",
    ),
    "torchvision_ema": (
        {
            "model": {k: 0 * v for k, v in weights().items()},
            "model_ema": {"n_averaged": torch.tensor(9)}
            | {f"module.{k}": v for k, v in weights().items()},
        },
        "model_ema",
        "",
    ),
    "model_state_dict": ({"model_state_dict": weights(), "loss": 0.3}, "model_state_dict", ""),
    "net": ({"net": weights(), "acc": 93.0}, "net", ""),
    "settings of the model": (
        {"model": {"name": "resnet18", "classes": 10}, "model_state_dict": weights()},
        "model_state_dict",
        "",
    ),
    "parallel net": ({"net": {f"module.{k}": v for k, v in weights().items()}}, "net", ""),
    "average alone": ({"state_dict": {}, "state_dict_ema": weights()}, "state_dict_ema", ""),
    "average of yolo": ({"model": {"fc.bias": torch.ones(2)}, "ema": weights()}, "ema", ""),
    "no average": ({"model": weights(), "ema": None}, "model", ""),
    "average of another kind": (
        {"model": weights(), "ema": {"decay": 0.9, "shadow_params": [torch.ones(2)]}},
        "model",
        "",
    ),
    "state_dict": ({"state_dict": weights(), "args": {"arch": "vgg11"}}, "state_dict", "vgg11"),
    "compiled": ({f"_orig_mod.{k}": v for k, v in weights().items()}, "", ""),
    "both": ({f"module._orig_mod.{k}": v for k, v in weights().items()}, "", ""),
    "other_way": ({f"_orig_mod.module.{k}": v for k, v in weights().items()}, "", ""),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_container_of_a_torch_file_is_found(tmp_path: Path, kind: str, zipped: bool) -> None:
    content, container, model_name = CONTENTS[kind]
    torch.save(content, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    found = checkpoint.read(tmp_path / "t.pt")
    assert_same(found.state)
    assert (found.container, found.model_name, found.metadata) == (container, model_name, {})


def test_the_namespace_stays_forbidden_outside(tmp_path: Path) -> None:
    torch.save({"model": weights(), "args": NAMESPACE}, tmp_path / "t.pt")
    checkpoint.read(tmp_path / "t.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "t.pt", weights_only=True)


def test_a_file_written_is_read_by_the_format_s_own_library(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "w.safetensors", weights(), {"b": "é", "a": "1"})
    assert_same(safetensors.torch.load_file(tmp_path / "w.safetensors"))
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"a": "1", "b": "é"}
    found = checkpoint.read(tmp_path / "w.safetensors")
    assert_same(found.state)
    assert found.metadata == {"a": "1", "b": "é"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_equal_content_gives_equal_bytes_whatever_its_order(tmp_path: Path) -> None:
    metadata = {str(n): "x" for n in range(20)}
    backwards = dict(reversed(weights().items())), dict(reversed(metadata.items()))
    checkpoint.write(tmp_path / "a", weights(), metadata)
    checkpoint.write(tmp_path / "b", *backwards)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    checkpoint.write(tmp_path / "w", {"a": tensor.T, "b": tensor, "c": tensor}, {})
    state = checkpoint.read(tmp_path / "w").state
    assert torch.equal(state["a"], tensor.T)
    assert torch.equal(state["b"], state["c"])


def test_hash_depends_on_every_part_and_not_on_the_format(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "w", weights(), {"x": "y"})
    torch.save(weights(), tmp_path / "t.pt")
    same = checkpoint.sha256(weights())
    assert checkpoint.sha256(checkpoint.read(tmp_path / "w").state) == same
    assert checkpoint.sha256(checkpoint.read(tmp_path / "t.pt").state) == same
    assert checkpoint.sha256(dict(reversed(weights().items()))) == same
    changed = [
        weights() | {"fc.bias": torch.tensor([1.0, 2.0])},
        weights() | {"fc.bias": torch.tensor([[1.0, -2.0]])},
        weights() | {"fc.bias": torch.tensor([1.0, -2.0], dtype=torch.float64)},
        {name.upper(): tensor for name, tensor in weights().items()},
        weights() | {"step": torch.tensor(0)},
    ]
    assert len({checkpoint.sha256(state) for state in changed} | {same}) == 6


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    torch.save(Module(), tmp_path / "t.pt")
    with pytest.raises(ModelError, match=r"full pickle.*Module.*--trust-pickle"):
        checkpoint.read(tmp_path / "t.pt")
    assert_same(checkpoint.read(tmp_path / "t.pt", trust_pickle=True).state)
    torch.save({"model": Module(), "epoch": 1}, tmp_path / "yolo.pt")
    assert checkpoint.read(tmp_path / "yolo.pt", trust_pickle=True).container == "model"


class Runs:
    """Writes a file when it is unpickled by anything that runs what a pickle says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_does_not_run_it(tmp_path: Path, zipped: bool) -> None:
    content = {"model": weights(), "args": Runs(tmp_path / "ran")}
    torch.save(content, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="full pickle"):
        checkpoint.read(tmp_path / "t.pt")
    assert not (tmp_path / "ran").exists()


def header(entries: object, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], end: int) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


HOSTILE_BYTES = {
    "empty": (b"", "empty"),
    "text": (b"architecture,top1\nresnet18,69.8\n", "neither a safetensors nor a torch file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "neither"),
    "html": (b"<!DOCTYPE html><html>404</html>", "neither"),
    "pickle of nothing": (b"\x80\x04N.", "damaged"),
    "zip of nothing": (b"PK\x03\x04" + bytes(50), "damaged"),
    "safetensors, truncated": (header(entry([4], 16), bytes(12)), "damaged"),
    "safetensors, longer": (header(entry([4], 16), bytes(20)), "damaged"),
    "safetensors, huge shape": (header(entry([10**6, 10**6], 16), bytes(16)), "damaged"),
    "safetensors, overflow": (header(entry([2**62, 16], 16), bytes(16)), "damaged"),
    "safetensors, negative": (header(entry([-4], 16), bytes(16)), "damaged"),
    "safetensors, offsets": (header(entry([4], 10**12), bytes(16)), "damaged"),
    "safetensors, header length": (struct.pack("<Q", 10**7) + b"{}", "damaged"),
    "safetensors, no json": (struct.pack("<Q", 8) + b"{{{{{{{{", "damaged"),
    "safetensors, nothing inside": (header({"__metadata__": {"a": "b"}}), "no weights"),
}


@pytest.mark.parametrize("kind", HOSTILE_BYTES)
def test_hostile_bytes_are_one_line(tmp_path: Path, kind: str) -> None:
    content, message = HOSTILE_BYTES[kind]
    (tmp_path / "t.pt").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        checkpoint.read(tmp_path / "t.pt")
    assert "\n" not in str(caught.value)
    assert "t.pt" in str(caught.value)


HOSTILE_CONTENT = {
    "a list": ([1, 2], "holds a list"),
    "a tensor": (torch.zeros(3), "holds a Tensor"),
    "nothing": ({}, "no weights"),
    "no tensors": ({"epoch": 3, "lr": 0.1}, "no tensors.*'epoch', 'lr'"),
    "numbers among tensors": (weights() | {"epoch": 3}, "'epoch' is a int, not a tensor"),
    "nested": ({"model": {"encoder": weights(), "a": torch.ones(1)}}, "'encoder' is a dict"),
    "unnamed": ({1: torch.ones(2)}, "entry '1'"),
    "nan": (weights() | {"fc.bias": torch.tensor([0.0, float("nan")])}, "'fc.bias' has NaN"),
    "infinite": ({"model": {"w": torch.tensor([float("inf")])}}, "'w' has NaN or infinite"),
    "half infinite": ({"w": torch.tensor([float("inf")]).half()}, "'w' has NaN or infinite"),
    "expanded": ({"w": torch.zeros(1).expand(10**9, 10**3)}, "more than the file holds"),
    "sparse": ({"w": torch.eye(3).to_sparse()}, "sparse"),
    "meta": ({"w": torch.empty(3, device="meta")}, "without data"),
    "complex": ({"w": torch.zeros(2, dtype=torch.complex64)}, "complex"),
}


@pytest.mark.parametrize("kind", HOSTILE_CONTENT)
def test_hostile_content_is_one_line(tmp_path: Path, kind: str) -> None:
    content, message = HOSTILE_CONTENT[kind]
    torch.save(content, tmp_path / "t.pt")
    with pytest.raises(ModelError, match=message):
        checkpoint.read(tmp_path / "t.pt")


def rewrite(path: Path, *, compression: int, **changes: bytes) -> None:
    """Write the zip archive again with some members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, changes.get(Path(name).name.replace(".", "_"), data))


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(5_000_000)}, tmp_path / "t.pt")
    rewrite(tmp_path / "t.pt", compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "t.pt").stat().st_size < 30_000
    with pytest.raises(ModelError, match="compressed archive"):
        checkpoint.read(tmp_path / "t.pt")


@pytest.fixture
def scripted(tmp_path: Path) -> Path:
    """A TorchScript archive, with more than enough code for torch to compress it."""
    module = Module()
    module.forward = module.fc.forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is of the past
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3)), tmp_path / "t.pt")
    return tmp_path / "t.pt"


def test_torchscript_is_code_and_read_when_trusted(scripted: Path) -> None:
    with zipfile.ZipFile(scripted) as archive:
        assert {info.compress_type for info in archive.infolist()} != {zipfile.ZIP_STORED}
    with pytest.raises(ModelError, match=r"TorchScript archive, which holds code.*--trust-pickle"):
        checkpoint.read(scripted)
    assert_same(checkpoint.read(scripted, trust_pickle=True).state)


def test_trust_does_not_unpack_a_bomb(scripted: Path) -> None:
    with zipfile.ZipFile(scripted, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t/code/bomb.py", bytes(2**27))
    with pytest.raises(ModelError, match="compressed archive"):
        checkpoint.read(scripted, trust_pickle=True)


def test_a_class_that_is_not_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynet.py").write_text("from torch import nn\nclass Net(nn.Linear): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mynet  # type: ignore[import-not-found]

    torch.save(mynet.Net(3, 2), tmp_path / "t.pt")
    assert checkpoint.read(tmp_path / "t.pt", trust_pickle=True).state.keys() == {"weight", "bias"}
    monkeypatch.delitem(sys.modules, "mynet")
    (tmp_path / "mynet.py").unlink()
    with pytest.raises(ModelError, match=r"cannot be imported here.*mynet.*PYTHONPATH"):
        checkpoint.read(tmp_path / "t.pt", trust_pickle=True)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("timm/resnet50.a1_in1k", "is written timm:resnet50.a1_in1k"),
        ("hf_hub:timm/resnet50.a1_in1k", "is written timm:resnet50.a1_in1k"),
        ("hf-hub:me/net", "download its model.safetensors"),
    ],
)
def test_a_name_of_the_hub_is_no_path(name: str, advice: str) -> None:
    with pytest.raises(ModelError, match=f"does not exist; .*{advice}"):
        checkpoint.read(name)


@pytest.mark.parametrize("occurrence", [0, 1], ids=["storage", "shape"])
def test_a_torch_file_cannot_claim_more_than_it_holds(tmp_path: Path, occurrence: int) -> None:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        program = archive.read(name)
    # BININT1 4 is the number of elements of the storage, then the shape; BININT holds more.
    parts = program.split(b"K\x04")
    assert len(parts) == 3
    lie = [b"K\x04", b"K\x04"]
    lie[occurrence] = b"J" + struct.pack("<i", 10**9)
    forged = parts[0] + lie[0] + parts[1] + lie[1] + parts[2]
    rewrite(tmp_path / "t.pt", compression=zipfile.ZIP_STORED, data_pkl=forged)
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.read(tmp_path / "t.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_a_truncated_torch_file_is_damaged(tmp_path: Path, zipped: bool, kept: float) -> None:
    torch.save(weights(), tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "t.pt").read_bytes()
    (tmp_path / "t.pt").write_bytes(data[: int(kept * len(data))])
    # Cut within the name of a class, what is left is an unknown class.
    with pytest.raises(ModelError, match=r"damaged|full pickle"):
        checkpoint.read(tmp_path / "t.pt")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        checkpoint.read(tmp_path / "missing.pt")
    with pytest.raises(ModelError, match="is a folder"):
        checkpoint.read(tmp_path)
    with pytest.raises(ModelError, match="File name too long"):
        checkpoint.read(tmp_path / f"{'n' * 300}.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ModelError, match="not a regular file"):
        checkpoint.read(tmp_path / "pipe.pt")


@pytest.mark.slow
def test_hostile_files_cost_no_memory(tmp_path: Path) -> None:
    """The bomb would unpack to 512 MB, the shape to 4 TB; the process may grow by 200 MB."""
    torch.save({"w": torch.zeros(1).expand(10**9, 10**3)}, tmp_path / "shape.pt")
    (tmp_path / "huge.pt").write_bytes(header(entry([10**6, 10**6], 16), bytes(16)))
    with (
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w", force_zip64=True) as member,
    ):
        for _ in range(512):
            member.write(bytes(1 << 20))
    script = """
import resource, sys
from dreamkd import checkpoint
from dreamkd.errors import ModelError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        checkpoint.read(path)
    except ModelError:
        continue
    sys.exit(f"{path} was read")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
sys.exit(f"{grown} KiB" if grown > 200_000 else 0)
"""
    paths = [str(path) for path in tmp_path.glob("*.pt")]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
