"""Where the work is computed: device, precision, threads. Nothing global is changed at import."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dreamkd.config import RuntimeConfig
from dreamkd.engine.heap import kept_heap
from dreamkd.engine.replay import WARM_UP, Outputs, Replay
from dreamkd.errors import ConfigError
from dreamkd.events import OnEvent

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """A decided device, precision and thread count; no `auto` is left."""

    device: str
    precision: str
    threads: int

    @classmethod
    def settle(cls, config: RuntimeConfig) -> Runtime:
        """Decide every `auto` for this machine.

        Raises: ConfigError: the device is unknown or absent, or cannot compute in the precision.
        """
        device = _device(config.device)
        return cls(device, _precision(config.precision, device), _threads(config.threads))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Set the thread count, and which GPU is meant, while the block lasts.

        On the CPU, memory that is freed within it is kept until its end (`heap.kept_heap`).
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with kept_heap() if self.device == "cpu" else torch.cuda.device(self.device):
                yield
        finally:
            torch.set_num_threads(before)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the chosen precision; statistics and losses stay in float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, _DTYPES[self.precision])

    def replayed(
        self, step: Callable[..., Outputs], *, on_event: OnEvent
    ) -> Callable[..., Outputs]:
        """The step as this device launches it best; a call may overwrite what the last returned."""
        return step if self.device == "cpu" else Replay(step, device=self.device, on_event=on_event)

    @property
    def first_steps(self) -> int:
        """Steps that take longer than all after them: what compiles, and records on CUDA."""
        return 1 if self.device == "cpu" else WARM_UP + 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return _DTYPES.get(self.precision, torch.float32)

    @property
    def loss_scale(self) -> float:
        """Factor of the loss in the backward pass: small gradients of float16 would become 0."""
        return 1024.0 if self.precision == "fp16" else 1.0

    def settings(self) -> dict[str, Any]:
        """Field -> value, for the record."""
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        name = self.device
        if name.startswith("cuda"):
            name = f"{name} ({torch.cuda.get_device_name(torch.device(name))})"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{name}, {self.precision}, {threads}"


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise ConfigError(f"--device: {wanted!r} is not one of auto, cpu, cuda, cuda:N")
    if wanted == "cpu":
        return wanted
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(
            f"--device: {wanted!r} is not here; this machine has {count} CUDA devices"
        )
    return f"cuda:{index}"


def _precision(wanted: str, device: str) -> str:
    cpu = device == "cpu"
    if wanted == "auto":
        has_bf16 = _cpu_has_bf16() if cpu else _gpu_has_bf16(device)
        return "bf16" if has_bf16 else "fp32"
    if cpu and wanted == "fp16":
        raise ConfigError("--precision: fp16 is for CUDA; on the CPU use bf16 or fp32")
    return wanted


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    flags = torch.backends.cpu.get_cpu_capability()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return flags.startswith("AVX512") and bool(probe is not None and probe())


def _gpu_has_bf16(device: str) -> bool:
    """Whether the GPU multiplies bfloat16 in hardware: compute capability 8 and later."""
    return torch.cuda.get_device_capability(torch.device(device))[0] >= 8


def _threads(wanted: int | str) -> int:
    return torch.get_num_threads() if wanted == "auto" else int(wanted)
