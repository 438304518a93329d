"""Free memory, of a machine and of control groups as the system writes them down."""

from pathlib import Path

import pytest

from dreamkd.engine.available import free_memory

MEBI = 2**20

VERSIONS = {
    "one": ("memory:/jobs/a", "memory/", "limit_in_bytes", "usage_in_bytes", "total_"),
    "two": (":/jobs/a", "", "max", "current", ""),
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """One of 1,000 MiB to spare, in whose groups nothing is limited."""
    for folder in ("proc/self", "cgroup/jobs/a", "cgroup/memory/jobs/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1024000 kB\n")
    return tmp_path


def free(machine: Path) -> float:
    return free_memory(proc=machine / "proc", cgroup=machine / "cgroup") / MEBI


def limited(machine: Path, version: str, group: str, *, limit: object, used: int) -> None:
    membership, folder, limit_name, usage_name, prefix = VERSIONS[version]
    (machine / "proc/self/cgroup").write_text(f"4:{membership}\n")
    here = machine / "cgroup" / folder / group
    (here / f"memory.{limit_name}").write_text(f"{limit}\n")
    (here / f"memory.{usage_name}").write_text(f"{used * MEBI}\n")
    pages = f"anon 5\n{prefix}inactive_file {200 * MEBI}\n{prefix}active_file {100 * MEBI}\n"
    (here / "memory.stat").write_text(pages)


def test_the_machine_s_own(machine: Path) -> None:
    assert free(machine) == 1000
    (machine / "proc/meminfo").unlink()
    assert free(machine) == 2**42


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("group", ["", "jobs", "jobs/a"])
def test_what_files_left_in_memory_gives_way(machine: Path, version: str, group: str) -> None:
    limited(machine, version, group, limit=700 * MEBI, used=690)
    assert free(machine) == 10 + 300


@pytest.mark.parametrize("version", VERSIONS)
def test_a_group_without_a_limit_limits_nothing(machine: Path, version: str) -> None:
    limited(machine, version, "jobs/a", limit="max", used=690)
    assert free(machine) == 1000


def test_a_group_that_is_full_has_none(machine: Path) -> None:
    limited(machine, "two", "", limit=100 * MEBI, used=500)
    assert free(machine) == 0
