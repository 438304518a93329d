"""The second network of Adaptive DeepInversion, whose disagreement with the teacher images seek."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dreamkd.config import CompetitionConfig
from dreamkd.models import Classifier


@dataclass(frozen=True)
class Rival:
    """The student that images should disagree about with the teacher (Yin et al. 2020, Eq. 8-9)."""

    student: Classifier
    weight: float  # alpha_c
    temperature: float = 1.0
    loss: str = "js"  # a key of `losses.COMPETITION`

    @classmethod
    def of(cls, student: Classifier, config: CompetitionConfig) -> Self:
        """As settled settings say."""
        return cls(
            student,
            weight=float(config.competition),
            temperature=float(config.competition_temperature),
            loss=config.competition_loss,
        )
