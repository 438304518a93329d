"""What `distill` begins with: networks and images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dreamkd import softlabels, timetable
from dreamkd.config import DistillConfig
from dreamkd.distributed import ALONE, Workers
from dreamkd.events import Hint, OnEvent, ignore
from dreamkd.examples import Labelled, is_data_free, read_labelled
from dreamkd.identity import versions
from dreamkd.models import Classifier
from dreamkd.networks import Networks, Own
from dreamkd.partners import load_partner, load_teacher, starting_student


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Networks as they are before the first step; the student that learns is a copy."""

    networks: Networks  # the student as the rival, where any images compete
    student: Classifier
    given: Labelled | None = None  # images that the student learns from, where they exist
    measured: Labelled | None = None  # images that it is measured on, and that train nothing

    @classmethod
    def load(cls, config: DistillConfig, own: Own, *, on_event: OnEvent = ignore) -> Self:
        """Load what the settings name, but for what the caller holds; images: `with_images`.

        Raises:
            ConfigError: pretrained weights are asked for, and the student is a file.
            ModelError: a network cannot be loaded or built, or does not go with the teacher.
        """
        teacher = load_teacher(config, config.teacher, own, on_event=on_event)
        student = starting_student(config, teacher, own=own.student, on_event=on_event)
        prior = load_partner(
            config.bn_prior,
            teacher,
            own=own.prior,
            option="--bn-prior",
            trust_pickle=config.trust_pickle,
            on_event=on_event,
        )
        rival = student if timetable.any_competes(config) else None
        return cls(networks=Networks(teacher, prior=prior, rival=rival), student=student)

    @property
    def teacher(self) -> Classifier:
        """Which the student learns from."""
        return self.networks.teacher

    def with_images(
        self,
        config: DistillConfig,
        *,
        workers: Workers = ALONE,
        measure: bool = True,
        on_event: OnEvent = ignore,
    ) -> Self:
        """The same, with the images that the settings name.

        Args:
            workers: the processes each of which holds them.
            measure: whether the student is measured here.

        Raises:
            DataError: they cannot be read, or are of other classes.
            RunError: there is no memory for them.
        """
        spec = config.eval_data if measure else None
        measured = read_labelled(spec, self.teacher, on_event=on_event)
        # Shards are used as they are.
        given = read_labelled(
            config.data, self.teacher, copies=workers.copies, crop_pct=1.0, on_event=on_event
        )
        if given and measured and given.source == measured.source:
            on_event(Hint(f"--eval-data measures on what --data trains on: {given.source}"))
        return replace(self, measured=measured, given=given)

    def identity(self, config: DistillConfig) -> dict[str, Any]:
        """What of them a run depends on: networks, pixels, labels.

        Args: config: settled.

        Raises:
            ConfigError: labels that were stored are of other views, or of another teacher.
            DataError: a file of them is damaged.
        """
        found = self.networks.identity(self.student)
        found["data_pixels_sha256"] = self.given and self.given.examples.sha256()
        if config.labels is not None:
            wanted = {name: getattr(config, name) for name in softlabels.VIEWS}
            wanted |= {name: found[name] for name in softlabels.INPUTS}
            card = self.teacher.card
            wanted |= {f"teacher_{name}": getattr(card, name) for name in softlabels.CARD}
            wanted |= {f"{name}_version": versions()[name] for name in softlabels.DRAWN_BY}
            kept = softlabels.require_same(Path(config.labels), wanted)
            found |= {"labels_kept": kept.outputs, "labels_sha256": kept.sha256}
        return found

    def is_data_free(self, config: DistillConfig) -> bool:
        """Whether a student that they train has learned from nothing real."""
        given = self.given
        free = given is None or (given.synthesised and is_data_free(str(config.data)))
        return free and self.student.card.data_free

    def source(self, config: DistillConfig) -> str:
        """Where the images come from."""
        return self.given.source if self.given else f"made from {config.teacher}"
