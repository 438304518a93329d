"""How much main memory this process may still take: of the machine, and of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


class _Version(NamedTuple):
    """What a version of control groups calls what."""

    folder: str  # below the root, of the groups of memory
    limit: str
    usage: str
    cached: tuple[str, str]  # of `memory.stat`: pages of files, which give way to the process


_VERSIONS = (
    _Version("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    _Version(
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_memory(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Bytes of main memory that this process may still take.

    What files have left in memory counts as free: a container that has read its images is not full.

    Args: proc, cgroup: where the system tells of both.
    """
    limits = [_machine(proc / "meminfo")]
    for version, folder in _groups(proc / "self/cgroup", cgroup):
        limit = _number(folder / version.limit)
        if limit is not None:
            cached = sum(_numbers(folder / "memory.stat").get(name, 0) for name in version.cached)
            limits.append(limit - (_number(folder / version.usage) or 0) + cached)
    return max(0, min(limits))


def _machine(meminfo: Path) -> int:
    kibibytes = _numbers(meminfo).get("MemAvailable:")
    return 2**62 if kibibytes is None else kibibytes * 1024  # unknown: nothing is cut


def _groups(membership: Path, root: Path) -> Iterator[tuple[_Version, Path]]:
    """The groups of this process and those around them; a container may see its own as the root."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for version in _VERSIONS:
        own = "/"
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if version.folder in controllers.split(","):
                own = path
        folder = root / version.folder
        yield version, folder
        for part in Path(own).parts[1:]:
            folder /= part
            yield version, folder


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    """The second word of each line by its first."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.split()[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
