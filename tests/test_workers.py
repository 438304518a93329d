"""Which of a job's processes this one is, as its launcher says, and what its share is."""

import pytest

from dreamkd.distributed import ALONE, Workers

LAUNCHED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "65535",
}


@pytest.mark.parametrize(
    ("beside", "local_world"),
    [("4", 4), ("8", 8), ("", 1), ("four", 1), ("-4", 1), ("4.0", 1), (None, 1)],
)
def test_some_launchers_say_how_many_share_the_machine(
    beside: str | None, local_world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    given = LAUNCHED if beside is None else LAUNCHED | {"LOCAL_WORLD_SIZE": beside}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Workers.of_environment() == Workers(5, 8, 1, local_world)


def test_one_process_of_a_machine_looks_whether_there_is_room_for_all_of_it() -> None:
    machine = [Workers(rank, 8, rank % 4, 4) for rank in range(8)]
    assert [worker.copies for worker in machine] == [4, 1, 1, 1, 4, 1, 1, 1]
    assert ALONE.copies == 1


def test_equal_parts_make_up_the_whole() -> None:
    parts = [list(range(12))[Workers(rank, 3).part(12)] for rank in range(3)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
