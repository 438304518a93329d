"""The networks that the settings name, loaded: teacher, prior, student, verifiers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from dreamkd import batchnorm, models
from dreamkd.config import DistillConfig, InvertConfig
from dreamkd.engine import Runtime
from dreamkd.errors import ConfigError, ModelError
from dreamkd.events import Hint, Note, OnEvent, ignore
from dreamkd.models import Classifier
from dreamkd.networks import Networks, Own
from dreamkd.synthesis import Synthesiser
from dreamkd.verification import Verifiers


@dataclass(frozen=True, kw_only=True)
class Partners:
    """Those of `invert`."""

    networks: Networks
    verifiers: Verifiers

    @classmethod
    def load(cls, config: InvertConfig, own: Own, *, on_event: OnEvent) -> Self:
        """Load what the settings name, but for what the caller holds.

        Raises:
            ModelError: one cannot be loaded, or does not go with the teacher.
            NoBatchNormError: the method needs statistics that no network here holds.
        """
        how: dict[str, Any] = {"trust_pickle": config.trust_pickle, "on_event": on_event}
        teacher = load_teacher(config, config.model, own, on_event=on_event)
        prior = load_partner(config.bn_prior, teacher, own=own.prior, option="--bn-prior", **how)
        rival = load_partner(config.student, teacher, own=own.student, option="--student", **how)
        networks = Networks(teacher, prior=prior, rival=rival)
        if config.method != "deepdream":
            matched = networks.matched
            batchnorm.require_statistics(matched.module, name=matched.card.architecture)
        if rival is not None:
            _require_alike(rival, teacher)
        verifiers = Verifiers.load(config.verifier, teacher=teacher, own=own.verifiers, **how)
        return cls(networks=networks, verifiers=verifiers)

    def identity(self) -> dict[str, Any]:
        """What of them a run depends on."""
        verifiers = {"verifiers": self.verifiers.identity()}
        return self.networks.identity(self.networks.rival) | verifiers

    def synthesiser(
        self, config: InvertConfig, *, runtime: Runtime, on_event: OnEvent
    ) -> Synthesiser:
        """What makes the batches."""
        return Synthesiser.of(
            self.networks,
            config,
            runtime=runtime,
            statistics=config.method != "deepdream",
            on_event=on_event,
        )


def load_teacher(
    config: InvertConfig | DistillConfig, spec: str, own: Own, *, on_event: OnEvent
) -> Classifier:
    """The teacher, as the settings describe it, or the caller's.

    Raises: ModelError: it cannot be loaded.
    """
    teacher = own.teacher or models.load(spec, **config.load_arguments(), on_event=on_event)
    on_event(Note(f"teacher: {teacher.card.source}"))
    return teacher


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
        ConfigError: an option has no effect on it: pretrained weights of one that is given,
            statistics of one without batch norm.
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
    seen = replace(
        named,
        interpolation=card.interpolation,
        crop_pct=card.crop_pct,
        crop_mode=card.crop_mode,
    )
    student = replace(student, card=seen)
    if not any(parameter.requires_grad for parameter in student.module.parameters()):
        raise ModelError(
            f"--student {spec}: none of its parameters learns; give it some that require gradients"
        )
    if config.bn_recalibration and not batchnorm.running_statistics(student.module):
        raise ConfigError(
            f"--bn-recalibration has no effect with --student {spec}, which has no batch norm that "
            "learns"
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
    spec: str | None,
    teacher: Classifier,
    *,
    own: Classifier | None = None,
    option: str,
    trust_pickle: bool,
    on_event: OnEvent = ignore,
) -> Classifier | None:
    """A second network that sees the teacher's images, where the settings name one.

    Args: own: the caller's, which `spec` then only names.
    Raises: ModelError: it cannot be loaded, or takes other channels.
    """
    if spec is None:
        return None
    partner = own or models.load_beside(spec, trust_pickle=trust_pickle, on_event=on_event)
    on_event(Note(f"{option.removeprefix('--')}: {partner.card.source}"))
    ours, theirs = teacher.card.input_size[0], partner.card.input_size[0]
    if ours != theirs:
        raise ModelError(f"{option} {spec} takes images of {theirs} channels, the model of {ours}")
    return partner
