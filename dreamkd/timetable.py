"""At which step of the student each image batch is made, and when the student is measured.

All of it follows from the settled settings, so that a run that is continued keeps its timetable.
"""

from __future__ import annotations

from dreamkd.config import DistillConfig

#: Fresh batches arrive over this share of the student's steps, so that the last is learned too.
_SYNTHESIS_SHARE = 2 / 3


def synthesises(config: DistillConfig) -> bool:
    """Whether the job makes images, rather than train on those that exist; settled or as given."""
    return config.data is None and config.recipe != "offline"


def batches(config: DistillConfig) -> int:
    """Image batches of the whole job."""
    return int(config.first_batches) + int(config.rounds)


def begins(k: int, config: DistillConfig) -> int:
    """The student's step at which batch `k` is made; 0 for the first bank."""
    fresh = k - int(config.first_batches) + 1  # of the batches after the first bank
    return round(_SYNTHESIS_SHARE * int(config.steps) * max(0, fresh) / max(1, int(config.rounds)))


def any_competes(config: DistillConfig) -> bool:
    """Whether any batch depends on the student of its time; settled or as given."""
    return synthesises(config) and 0 not in (config.rounds, config.competition)


def competes(k: int, config: DistillConfig) -> bool:
    """Whether batch `k` depends on the student of its time."""
    return any_competes(config) and k >= int(config.first_batches)


def looks(config: DistillConfig) -> set[int]:
    """The student's steps at which it is measured, the last left out."""
    total = int(config.steps)
    rounds = int(config.rounds) if synthesises(config) else 0
    # After the last fresh batch as before it.
    pace = _SYNTHESIS_SHARE * total / rounds if rounds else total / 100
    parts = round(total / pace)
    every = max(1, parts // 10) if config.eval_every == "auto" else int(config.eval_every)
    return {round(pace * part) for part in range(every, parts + 1, every)} - {0, total}
