"""Batches that depend on those before them: what is carried on, kept so that a run can go on.

A generator learns from batch to batch, and a moving average remembers. Such a run makes its batches
in order and saves what it carries after each; any other can make any batch at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from dreamkd.bank import Bank
from dreamkd.config import ImageConfig
from dreamkd.config.options import AUTO
from dreamkd.events import Hint, OnEvent
from dreamkd.images import IMAGES
from dreamkd.runs import Run
from dreamkd.synthesis import Synthesiser

_STATE = "images"

#: What is said of a stop between two steps of a batch, which is then made again.
UNFINISHED = "an unfinished batch of images begins anew; "


def sequential(config: ImageConfig) -> bool:
    """Whether a batch depends on those before it, by settled settings."""
    return IMAGES[config.images].sequential or config.bn_momentum not in (AUTO, 0)


def outstanding(
    run: Run, synthesiser: Synthesiser, held: Sequence[bool], *, on_event: OnEvent
) -> list[int]:
    """The batches to make, in order; the synthesiser is put where the first of them begins.

    A batch that is there is made again, to the same bytes, where a later one needs what it carried:
    when the run was killed between the two files, or lost a shard that it had gone past.

    Args: held: of every batch, whether it is there and intact.
    """
    if not sequential(synthesiser.config):
        return [k for k, there in enumerate(held) if not there]
    saved = run.load_state(_STATE, on_event=on_event)
    following = 0 if saved is None else int(saved[1]["next"])
    if not all(held[:following]):
        on_event(Hint("a lost batch needs those before it: all are made again"))
        following, saved = 0, None
    synthesiser.restore({} if saved is None else saved[0])
    return list(range(following, len(held)))


def carry(run: Run, bank: Bank, synthesiser: Synthesiser, *, following: int) -> None:
    """Keep what goes on to batch `following`, once every batch before it is durable."""
    if sequential(synthesiser.config):
        bank.flush()
        run.save_state(_STATE, synthesiser.state(), {"next": following})
