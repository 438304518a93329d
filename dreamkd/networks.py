"""The networks of a run: those that its images come of, and those that the caller holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from dreamkd.models import Classifier


@dataclass(frozen=True)
class Networks:
    """Those that have a part in an image's loss (Yin et al. 2020, Eq. 2, 7, 9)."""

    teacher: Classifier
    prior: Classifier | None = None  # whose statistics are matched, if not the teacher's
    #: The student that images should divide from the teacher; its weights may change from batch to
    #: batch.
    rival: Classifier | None = None

    def __iter__(self) -> Iterator[Classifier]:
        """Those that there are."""
        return (network for network in (self.teacher, self.prior, self.rival) if network)

    @property
    def matched(self) -> Classifier:
        """The one whose statistics R_feature matches."""
        return self.prior or self.teacher

    @property
    def staged(self) -> Iterator[Classifier]:
        """Those that see the images as small as a stage makes them; a prior has its own size."""
        return (network for network in (self.teacher, self.rival) if network)

    def identity(self, student: Classifier | None) -> dict[str, Any]:
        """What of them a run depends on: weights, cards, what the student learned from.

        Args: student: the rival, or the one that learns though nothing competes with it.
        """
        return {
            "teacher_sha256": self.teacher.sha256(),
            "teacher": self.teacher.card.facts(),
            "bn_prior_sha256": self.prior and self.prior.sha256(),
            "bn_prior": self.prior and self.prior.card.facts(),
            "student_sha256": student and student.sha256(),
            "student": student and student.card.facts(),
            "student_data_free": student is None or student.card.data_free,
        }


class Own(NamedTuple):
    """Networks that the caller holds, in place of those that the settings then only name."""

    teacher: Classifier | None = None
    student: Classifier | None = None
    prior: Classifier | None = None
    verifiers: Sequence[Classifier | None] = ()  # in the order of the settings' names

    def borrowed(self) -> Self:
        """The same, as a command takes them (`Classifier.borrowed`)."""
        return self._replace(
            teacher=_borrowed(self.teacher),
            student=_borrowed(self.student),
            prior=_borrowed(self.prior),
            verifiers=[*map(_borrowed, self.verifiers)],
        )


#: Where every network is the one that its name finds.
BY_NAME = Own()


def _borrowed(network: Classifier | None) -> Classifier | None:
    return network and network.borrowed()
