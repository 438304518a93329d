"""Weights from and to files, with nothing in a file trusted before it is read.

Safetensors first; torch files with `weights_only=True` plus exactly `argparse.Namespace`, which the
training checkpoints of timm and torchvision hold. What a file may cost is bounded by its own size:
compressed archives, shapes larger than their storage and lying headers are refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from dreamkd import containers
from dreamkd.errors import ModelError, said
from dreamkd.files import write_atomically

#: What DataParallel, torch's averaged models and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")

_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own bound
_CODE_LIMIT = 2**26  # bytes that the compressed code of a TorchScript archive may unpack to
_HOLDS_CODE = re.compile(
    r"Unsupported (global|operand|class|type)|Trying to (call|instantiate)|unsupported GLOBAL"
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: named tensors on the CPU, and what it says about them."""

    state: dict[str, Tensor]
    metadata: dict[str, str]  # of safetensors; empty for torch files
    container: str  # the entry that the weights came from, of `containers`; "" for the whole file
    model_name: str = ""  # the architecture a training checkpoint names, in its authors' words
    expectations: Mapping[str, Any] = field(default_factory=dict)  # of images; its words, unchecked


def read(path: str | Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read the weights of a safetensors or torch file.

    Args:
        path: safetensors, or what `torch.save` wrote: a state dict, or one inside a training
            checkpoint under one of `containers.CONTAINERS`. `PREFIXES` are stripped from its names.
        trust_pickle: let the file run code while it is read; then it may also hold a module.
    Returns: a checkpoint whose tensors are dense, finite and no larger than the file.

    Raises:
        ModelError: no such file, not a checkpoint, damaged, hostile, holding code without
            `trust_pickle`, no tensors, or NaN or infinite weights.
    """
    path = Path(path)
    head = _head(path)
    if _looks_like_safetensors(head):
        return _checked(path, _read_safetensors(path))
    if head.startswith((b"PK\x03\x04", b"\x80")):  # zip, or the pickle protocol's first byte
        return _checked(path, _select(path, _read_torch(path, trust_pickle=trust_pickle)))
    raise ModelError(
        f"{path} is neither a safetensors nor a torch file (it starts with {head[:8]!r}); "
        "pass a state dict saved by torch.save or safetensors"
    )


def write(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write safetensors in one atomic step; equal content gives equal bytes.

    Raises:
        RunError: the file cannot be written; its old content is untouched.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors_torch.save(tensors, metadata=dict(metadata))
    # The library writes metadata in the order of a hash table, which differs from run to run.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(Path(path), len(text).to_bytes(8, "little") + text + data[8 + length :])


def sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes; the same in every file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder; pass the checkpoint file inside it")
        if not path.is_file():
            reason = "is not a regular file" if path.exists() else "does not exist"
            raise ModelError(f"checkpoint {path} {reason}{_of_a_hub(path)}")
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ModelError(f"cannot read checkpoint {path}: {said(error)}") from error
    if not head:
        raise ModelError(f"checkpoint {path} is empty; copy or download it again")
    return head


def _of_a_hub(path: Path) -> str:
    """What to do about a name of the model hub, which has the form of a path."""
    if path.parts[0].removeprefix("hf-hub:").removeprefix("hf_hub:") == "timm":
        return f"; a model of timm is written timm:{path.name}"
    if str(path).startswith(("hf-hub:", "hf_hub:")):
        return "; download its model.safetensors and pass that"
    return ""


def _looks_like_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_LIMIT


def _read_safetensors(path: Path) -> Checkpoint:
    # The library checks that header, offsets, shapes and file size agree before it maps anything.
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} is a damaged safetensors file: {error}") from error
    except (OSError, RuntimeError) as error:  # no handle, or no room to map it
        raise ModelError(f"cannot read checkpoint {path}: {said(error)}") from error
    return Checkpoint(state, metadata, "")


def _read_torch(path: Path, *, trust_pickle: bool) -> Any:
    if zipfile.is_zipfile(path):
        _refuse_inflation(path, trust_pickle=trust_pickle)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of old storage classes and of TorchScript
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    # Hostile or damaged bytes raise whatever the unpickler stumbles on, down to MemoryError.
    except Exception as error:
        raise _reading_failed(path, error, trust_pickle=trust_pickle) from error


def _reading_failed(path: Path, error: Exception, *, trust_pickle: bool) -> ModelError:
    text = str(error)
    if trust_pickle and isinstance(error, ImportError | AttributeError):
        return ModelError(
            f"{path} holds a module whose class cannot be imported here ({text}); put its folder "
            "on PYTHONPATH, or save its state_dict()"
        )
    if isinstance(error, pickle.UnpicklingError) and _HOLDS_CODE.search(text):
        named = re.search(r"GLOBAL ([\w.]+)", text)
        what = f" ({named[1]})" if named else ""
        return ModelError(
            f"{path} is a full pickle: reading it would run code{what}; save its state_dict() "
            "instead, or pass --trust-pickle if you trust who made it"
        )
    return ModelError(f"{path} is a damaged or unusable torch file: {said(error)}")


def _refuse_inflation(path: Path, *, trust_pickle: bool) -> None:
    """Refuse archives that unpack to more than they are: torch stores its records as they are.

    But for TorchScript's, whose code is compressed: they are taken when they are trusted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is a damaged torch file: {error}") from error
    scripted = any(member.filename.endswith("/constants.pkl") for member in members)
    if scripted and not trust_pickle:
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code; save its state_dict(), or pass "
            "--trust-pickle if you trust who made it"
        )
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    room = path.stat().st_size + (_CODE_LIMIT if scripted else 0)
    if not (stored or scripted) or sum(member.file_size for member in members) > room:
        raise ModelError(
            f"{path} is a compressed archive, which torch never writes: it may unpack to any size; "
            "save it again with torch.save"
        )


def _select(path: Path, content: Any) -> Checkpoint:
    """Find the weights in what torch.load returned."""
    model_name, expectations = "", dict[str, Any]()
    if isinstance(content, Mapping):
        model_name, expectations = containers.model_name(content), containers.expectations(content)
    container = containers.container(content) if isinstance(content, Mapping) else ""
    content = content[container] if container else content
    if isinstance(content, nn.Module):  # only a trusted pickle can hold one
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not a state dict; pass a mapping of names "
            f"to tensors, alone or under {', '.join(containers.CONTAINERS)}"
        )
    state = {key: value for key, value in content.items() if key != "n_averaged"}
    if state and not any(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"{path} holds no tensors: its entries are {_few(map(str, state))}; weights are looked "
            f"for under {', '.join(containers.CONTAINERS)}"
        )
    return Checkpoint(state, {}, container, model_name, expectations)


def _checked(path: Path, found: Checkpoint) -> Checkpoint:
    """Refuse what no network could use; strip prefixes."""
    if not found.state:
        raise ModelError(f"{path} holds no weights")
    size = path.stat().st_size
    for name, tensor in found.state.items():
        where = f"{path}: entry {str(name)[:80]!r}"
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(f"{where} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ModelError(f"{where} is sparse, quantised or without data; save dense tensors")
        # A stride of 0 makes a tensor of any shape out of one stored number.
        if tensor.numel() * tensor.element_size() > size:
            raise ModelError(f"{where} claims shape {list(tensor.shape)}, more than the file holds")
        if tensor.is_complex():
            raise ModelError(f"{where} is complex; weights are real numbers")
        if tensor.is_floating_point() and not _finite(tensor):
            raise ModelError(f"{where} has NaN or infinite values; the training diverged")
    state = {name: tensor.detach() for name, tensor in without_prefixes(found.state).items()}
    return replace(found, state=state)


def _finite(tensor: Tensor) -> bool:
    # float8 kinds have no isfinite of their own.
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(values).all())


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries without `PREFIXES`, as far as all of them have them."""
    state = dict(state)
    for _ in range(4):  # torch.compile around DataParallel, or the other way round, or an average
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def _few(names: Any) -> str:
    """At most four names, quoted, and how many more there are."""
    names = sorted(names)
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(repr(name[:60]) for name in names[:4]) + rest
