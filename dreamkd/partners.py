"""The networks beside the teacher: whose statistics are matched, the student, the verifiers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from dreamkd import batchnorm, models
from dreamkd.config import DistillConfig, InvertConfig
from dreamkd.engine import Runtime
from dreamkd.errors import ConfigError, ModelError
from dreamkd.events import Hint, Note, OnEvent, ignore
from dreamkd.models import Classifier
from dreamkd.synthesis import Synthesiser
from dreamkd.verification import Verifiers


@dataclass(frozen=True, kw_only=True)
class Partners:
    """Those that `invert` was given; each may be absent."""

    verifiers: Verifiers
    prior: Classifier | None  # whose statistics are matched, if not the teacher's
    student: Classifier | None  # that images should disagree with

    @classmethod
    def load(cls, config: InvertConfig, teacher: Classifier, *, on_event: OnEvent) -> Self:
        """Load what the settings name.

        Raises:
            ModelError: one cannot be loaded, or does not go with the teacher.
            NoBatchNormError: the method needs statistics that no network here holds.
        """
        how: dict[str, Any] = {"trust_pickle": config.trust_pickle, "on_event": on_event}
        prior, student = (
            load_partner(spec, teacher, option=option, **how) if spec else None
            for option, spec in (("--bn-prior", config.bn_prior), ("--student", config.student))
        )
        if config.method != "deepdream":
            source = prior or teacher
            batchnorm.require_statistics(source.module, name=source.card.architecture)
        for role, network in (("statistics", prior), ("student", student)):
            if network is not None:
                on_event(Note(f"{role}: {network.card.source}"))
        if student is not None:
            _require_alike(student, teacher)
        verifiers = Verifiers.load(config.verifier, teacher=teacher, **how)
        return cls(verifiers=verifiers, prior=prior, student=student)

    def identity(self) -> dict[str, Any]:
        """What of them a run depends on: weights, cards, what the student learned from."""
        return {
            "verifiers": self.verifiers.identity(),
            "bn_prior_sha256": self.prior and self.prior.sha256(),
            "bn_prior": self.prior and self.prior.card.facts(),
            "student_sha256": self.student and self.student.sha256(),
            "student": self.student and self.student.card.facts(),
            "student_data_free": self.student is None or self.student.card.data_free,
        }

    def synthesiser(
        self, teacher: Classifier, config: InvertConfig, *, runtime: Runtime, on_event: OnEvent
    ) -> Synthesiser:
        """What makes the batches."""
        return Synthesiser.of(
            teacher,
            config,
            runtime=runtime,
            statistics=config.method != "deepdream",
            prior=self.prior,
            student=self.student,
            on_event=on_event,
        )


def _require_alike(student: Classifier, teacher: Classifier) -> None:
    """Raises: ModelError: they do not take the same images, or sort them into other classes."""
    ours, theirs = student.card, teacher.card
    whose = f"--student {ours.architecture}"
    theirs.require_classes(ours, whose=whose, role="the teacher")
    if ours.input_size != theirs.input_size:
        own, wanted = (models.extents(card.input_size) for card in (ours, theirs))
        beside = f"the teacher {theirs.architecture}"
        raise ModelError(f"{whose} takes images of {own}, but {beside} of {wanted}")


#: Networks built for photographs shrink images of up to this many pixels to nothing.
_TINY = 64


def starting_student(
    config: DistillConfig,
    teacher: Classifier,
    *,
    own: Classifier | None = None,
    on_event: OnEvent = ignore,
) -> Classifier:
    """The student of `distill` at step 0: fresh, pretrained, from a checkpoint, or the caller's.

    Each is shown pictures of the teacher's size and crop; a fresh one normalises them as the
    teacher does, another as it always did. Pretrained weights of other classes get a fresh head.

    Args: own: the caller's, whose weights are where it begins; then `config.student` only names it.

    Raises:
        ConfigError: pretrained weights are asked for, and a network is given.
        ModelError: it cannot be loaded or built, or does not go with the teacher; or nothing of it
            learns.
    """
    spec, card = config.student, teacher.card
    given = own is not None or models.is_file(spec)
    if given and config.student_pretrained:
        raise ConfigError(
            f"--student-pretrained has no effect with --student {spec}: its weights are given"
        )
    if given or config.student_pretrained:
        student = own or models.load_beside(
            spec,
            input_size=card.input_size,
            trust_pickle=config.trust_pickle,
            on_event=on_event,
        )
        if config.student_pretrained and student.card.num_classes != card.num_classes:
            student = models.with_new_head(student, num_classes=card.num_classes, seed=config.seed)
        _require_alike(student, teacher)
        names = card.class_names or student.card.class_names
        free = student.card.data_free and not config.student_pretrained
        named = replace(student.card, class_names=names, data_free=free)
    else:
        _advise(spec, teacher, on_event)
        student = models.create(
            spec,
            num_classes=card.num_classes,
            input_size=card.input_size,
            mean=card.mean,
            std=card.std,
            class_names=card.class_names,
            seed=config.seed,
        )
        named = replace(student.card, data_free=True)  # until it learns from something real
    seen = replace(named, interpolation=card.interpolation, crop_pct=card.crop_pct)
    student = replace(student, card=seen)
    if not any(parameter.requires_grad for parameter in student.module.parameters()):
        raise ModelError(
            f"--student {spec}: none of its parameters learns; give it some that require gradients"
        )
    on_event(Note(f"student: {student.card.source}"))
    return student


def _advise(student: str, teacher: Classifier, on_event: OnEvent) -> None:
    """An ImageNet network shrinks a small image to nothing before its first block."""
    side = max(teacher.card.input_size[1:])
    architecture = models.resolve(student)
    built_for = max(architecture.defaults().input_size[1:])
    if side > _TINY or built_for <= 2 * _TINY:
        return
    better = f"cifar_{architecture.name}"
    hint = f"; {better} is made for it" if better in models.all_names() else ""
    on_event(Hint(f"{student} is built for {built_for} px and the images have {side}{hint}"))


def load_partner(
    spec: str,
    teacher: Classifier,
    *,
    option: str,
    trust_pickle: bool,
    on_event: OnEvent = ignore,
) -> Classifier:
    """A second network that sees the teacher's images.

    Raises: ModelError: it cannot be loaded, or takes other channels.
    """
    partner = models.load_beside(spec, trust_pickle=trust_pickle, on_event=on_event)
    ours, theirs = teacher.card.input_size[0], partner.card.input_size[0]
    if ours != theirs:
        raise ModelError(f"{option} {spec} takes images of {theirs} channels, the model of {ours}")
    return partner
