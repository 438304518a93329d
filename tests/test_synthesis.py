"""One batch of images: what it optimises, what it leaves alone, what it reports."""

import gc
import math
import re
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dreamkd import models, synthesis
from dreamkd.augment import draw_view
from dreamkd.batch import Batch
from dreamkd.config import settle
from dreamkd.engine import Runtime, check_finite, frozen, normalise, to_uint8
from dreamkd.errors import DivergedError, NoBatchNormError
from dreamkd.events import Event, Hint, OnEvent, ignore
from dreamkd.models import Card, Classifier
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.observation import Observer
from dreamkd.randomness import generator_for
from dreamkd.synthesis import Synthesiser
from tests.conftest import against, invert_config

LABELS = torch.arange(20) % 10


def synthesiser_of(
    teacher: Classifier,
    rival: Classifier | None = None,
    on_event: OnEvent = ignore,
    **given: object,
) -> Synthesiser:
    statistics = given.pop("statistics", True)
    config = settle(invert_config(**given), input_size=teacher.card.input_size)
    config = replace(config, image_chunk=len(LABELS)) if config.image_chunk == "auto" else config
    config = replace(config, r_feature=1.0) if config.r_feature == "auto" else config
    if config.refine_r_feature == "auto":
        config = replace(config, refine_r_feature=1.0)
    objective = Objective(
        Networks(teacher, rival=rival),
        config,
        runtime=Runtime.settle(config),
        statistics=bool(statistics),
    )
    return Synthesiser(objective, on_event=on_event)


def synthesise_one(*arguments: Any, **given: Any) -> tuple[Batch, dict[str, torch.Tensor]]:
    """A batch, and what the next one begins from."""
    with synthesiser_of(*arguments, **given) as synthesiser:
        batch = synthesiser.batch(LABELS, generator=generator_for(0, "batch", 0))
        return batch, synthesiser.state()


def synthesise(*arguments: Any, **given: Any) -> Batch:
    return synthesise_one(*arguments, **given)[0]


def test_images_come_closer_to_what_the_teacher_remembers(digits: Classifier) -> None:
    start, end = synthesise(digits, image_steps=1), synthesise(digits, image_steps=40)
    assert end.r_feature < 0.5 * start.r_feature
    assert end.images.dtype == torch.uint8
    assert end.images.shape == (20, 1, 16, 16)


def test_deepdream_needs_no_statistics_and_obeys_the_label(digits: Classifier) -> None:
    batch = synthesise(digits, image_steps=60, statistics=False)
    assert list(batch.terms) == ["ce"]
    assert float((batch.predictions == LABELS).float().mean()) >= 0.9


def test_every_weighted_term_is_reported(digits: Classifier) -> None:
    batch = synthesise(digits, tv_l1=0.1, tv_l2=0.2, l2=0.3)
    assert list(batch.terms) == ["ce", "tv_l1", "tv_l2", "l2", "r_feature"]
    halved = synthesise(digits, tv_l1=0.05, image_steps=1)
    whole = synthesise(digits, tv_l1=0.1, image_steps=1)
    assert halved.terms["tv_l1"] == pytest.approx(whole.terms["tv_l1"] / 2)


def test_the_best_version_may_be_the_last(digits: Classifier) -> None:
    """One step makes two versions of an image: what it starts from, and what comes of it."""
    given = {"image_steps": 1, "r_feature": 0.0, "jitter": 0, "flip": "off"}
    # What an image was at half the resolution, where it seems smoother, is no version of it.
    for more in ({"image_steps": 2, "stages": (1, 1), "tv_l2": 10.0}, {}):
        best, last = (synthesise(digits, keep=keep, **given | more) for keep in ("best", "last"))
        assert torch.equal(best.images, last.images)
    longer = synthesise(digits, keep="best", **given | {"image_steps": 6})
    assert float(longer.confidences.mean()) > float(best.confidences.mean())


def test_a_batch_is_a_function_of_its_generator(digits: Classifier) -> None:
    first, again = synthesise(digits), synthesise(digits)
    assert torch.equal(first.images, again.images)
    assert first.terms == again.terms


@pytest.mark.parametrize(
    "option",
    [
        {"image_lr": 0.2},
        {"image_beta1": 0.1},
        {"image_beta2": 0.5},
        {"image_warmup": 3},
        {"image_schedule": "constant"},
        {"jitter": 3},
        {"jitter_border": "black"},
        {"jitter_border": "mirror"},
        {"flip": "on"},
        {"clip": "off"},
        {"ce": 0.5},
        {"r_feature": 0.1},
        {"first_bn": 10},
        {"tv_l1": 1},
        {"tv_l2": 1},
        {"l2": 1},
    ],
    ids=str,
)
def test_no_image_option_is_without_effect(digits: Classifier, option: dict[str, object]) -> None:
    plain = synthesise(digits, image_steps=4)
    changed = synthesise(digits, image_steps=4, **option)
    assert not torch.equal(plain.images, changed.images)


@pytest.mark.parametrize("border", ["black", "mirror"])
def test_statistics_are_reported_of_the_views_that_they_are_matched_in(
    digits: Classifier, border: str
) -> None:
    given = {"image_steps": 1, "start": "white", "jitter": 3, "jitter_border": border}
    batch = synthesise(digits, **given)
    generator = generator_for(0, "batch", 0)
    torch.randn((len(LABELS), 1, 16, 16), generator=generator)  # where the images start
    _, shown = (
        draw_view(len(LABELS), shift=3, flip=False, smallest=None, generator=generator)
        for _ in range(2)
    )
    with Observer(digits, border=border, device="cpu") as observe:
        plain, seen = (observe(batch.images, LABELS, view=v) for v in (None, shown))
    assert batch.r_feature == seen.r_feature != plain.r_feature
    assert batch.r_feature_chance == seen.r_feature_chance != plain.r_feature_chance
    # What they are taken for is of the images as they are.
    assert torch.equal(batch.confidences, plain.confidences)
    assert not torch.equal(batch.confidences, seen.confidences)


@pytest.mark.parametrize("chunk", [3, 64, 100])
def test_no_more_images_are_looked_at_at_once_than_fit(digits: Classifier, chunk: int) -> None:
    seen: list[int] = []
    images = torch.zeros((70, 1, 16, 16), dtype=torch.uint8)
    with Observer(digits, chunk=chunk, device="cpu") as observe:
        observe._module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        observe(images, torch.zeros(70, dtype=torch.int64))
    most = min(chunk, 64)
    assert seen == [*[most] * (70 // most), *([70 % most] if 70 % most else [])]


def test_an_observer_lets_go_of_its_network(digits: Classifier) -> None:
    with Observer(digits, device="cpu") as observe:
        watched = weakref.ref(observe._module)
    gc.collect()
    assert watched() is None


def test_former_batches_count_at_full_resolution_alone(digits: Classifier) -> None:
    """What is averaged is of images at full resolution."""
    given = {"stages": "1,1", "image_steps": 4, "bn_momentum": 0.5, "keep": "best"}
    weights: list[tuple[int, float]] = []
    with synthesiser_of(digits, **given) as synthesiser:
        plain = synthesiser._objective.__call__

        def told(*arguments: Any, **named: Any) -> Any:
            weights.append((named.get("factor", 1), float(named["average"].momentum)))
            return plain(*arguments, **named)

        synthesiser._objective = told
        told.term_names = plain.__self__.term_names
        for k in range(2):
            synthesiser.batch(LABELS, generator=generator_for(0, "batch", k))
    assert weights == [(2, 0)] * 2 + [(1, 0)] * 3 + [(2, 0)] * 2 + [(1, 0.5)] * 3


def test_the_rival_sees_images_that_it_misjudges(digits: Classifier) -> None:
    student = models.create(
        "cifar_resnet8",
        num_classes=10,
        input_size=(1, 16, 16),
        mean=(0.5,),
        std=(0.25,),
    )
    alone = synthesise(digits, image_steps=30)
    rivalled = synthesise(digits, student, image_steps=30, **against(10))

    def share(batch: Batch) -> float:
        inputs = normalise(batch.images, mean=(0.5,), std=(0.25,))
        with torch.no_grad():
            wrong = student.module(inputs).softmax(1).gather(1, LABELS[:, None])
        return float(wrong.mean())

    assert share(rivalled) < share(alone)


def test_without_competition_a_batch_is_as_without_a_rival(digits: Classifier) -> None:
    given = {"image_steps": 1, "r_feature": 0.0, "jitter": 0, "keep": "best"}
    alone = synthesise(digits, **given)
    with synthesiser_of(digits, digits, **given, **against(1000)) as synthesiser:
        generator = generator_for(0, "batch", 0)
        batch = synthesiser.batch(LABELS, generator=generator, compete=False)
    assert torch.equal(batch.images, alone.images)
    assert batch.terms == alone.terms


def test_a_generator_begins_from_weights_of_the_seed(digits: Classifier) -> None:
    first, again, other = (
        Synthesiser.of(Networks(digits), config, runtime=Runtime.settle(config)).state()
        for config in (
            settle(invert_config(images="generator", seed=seed), input_size=(1, 16, 16))
            for seed in (1, 1, 2)
        )
    )
    name = "images.meta.linear.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_refined_pixels_begin_where_the_generator_ended(digits: Classifier) -> None:
    def made(**given: object) -> tuple[Batch, dict[str, torch.Tensor]]:
        given |= {"images": "generator", "image_steps": 5, "bn_momentum": 0.5}
        return synthesise_one(digits, **given)

    (plain, carried), (barely, _) = made(refine_steps=0), made(refine_steps=1, refine_lr=1e-6)
    assert int((plain.images.int() - barely.images.int()).abs().max()) <= 1
    assert plain.terms != barely.terms  # another view, another weight
    refined, carried_too = made(refine_steps=40, refine_r_feature=0.1)
    assert float(refined.confidences.mean()) > float(plain.confidences.mean()) + 0.3
    # What the next batch begins from is the generator's doing alone, statistics included.
    assert "average.offset" in carried
    assert carried.keys() == carried_too.keys()
    assert all(torch.equal(carried[name], carried_too[name]) for name in carried)


@pytest.mark.parametrize("option", [{"refine_lr": 0.2}, {"refine_r_feature": 9}], ids=str)
@pytest.mark.parametrize("images", ["pyramid", "generator"])
def test_no_option_of_refinement_is_without_effect(
    digits: Classifier, images: str, option: dict[str, object]
) -> None:
    given = {"images": images, "refine_steps": 4}
    assert not torch.equal(
        synthesise(digits, **given).images, synthesise(digits, **given, **option).images
    )


def test_models_are_left_as_they_were(digits: Classifier) -> None:
    module = digits.module
    module.train()
    try:
        before = {k: v.clone() for k, v in module.state_dict().items()}
        config = settle(invert_config(image_chunk=9), input_size=digits.card.input_size)
        synthesiser = Synthesiser(
            Objective(Networks(digits), config, runtime=Runtime.settle(config))
        )
        with pytest.raises(ZeroDivisionError), synthesiser:
            raise ZeroDivisionError
        synthesise(digits)
        assert module.training
        assert all(p.requires_grad for p in module.parameters())
        assert not any(m._forward_pre_hooks for m in module.modules())
        after = module.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())
    finally:
        module.eval()


def test_divergence_names_term_step_and_batch(digits: Classifier) -> None:
    heard: list[Event] = []
    with pytest.raises(DivergedError) as caught:
        synthesise(digits, image_lr=1e30, clip="off", image_steps=30, on_event=heard.append)
    fact = r"\w+ became (nan|inf) at image step 25 of 30 of the batch"
    assert re.fullmatch(fact, caught.value.fact)
    rates = [event.text.split()[-4] for event in heard if isinstance(event, Hint)]
    assert rates == ["0.5", "0.25", "0.125"]


def test_pixels_that_the_last_step_made_infinite_are_not_stored(digits: Classifier) -> None:
    synthesiser = synthesiser_of(digits, clip="off", image_steps=1)
    synthesiser.config = replace(synthesiser.config, image_lr=1e40)  # no option is as large
    with (
        synthesiser,
        pytest.raises(DivergedError, match="pixels became NaN or infinite at step 1 of 1 of the"),
    ):
        synthesiser.batch(LABELS, generator=generator_for(0, "batch", 0))


@pytest.mark.parametrize("images", ["pixels", "generator"])
def test_a_batch_that_diverges_begins_again_at_half_the_rate(
    digits: Classifier, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the lower rate had been asked for; what is carried on is untouched by the failure."""
    refining = {"pixels": {}, "generator": {"refine_lr": 0.025}}[images]
    given = {"images": images, "image_steps": 25}
    wanted, carried = synthesise_one(digits, image_lr=0.025, **given, **refining)
    bad = [{"ce": math.nan}] * 2

    def check(terms: dict[str, float], *, where: str) -> None:
        check_finite(bad.pop() if bad else terms, where=where)

    monkeypatch.setattr(synthesis, "check_finite", check)
    heard: list[Event] = []
    batch, state = synthesise_one(digits, image_lr=0.1, on_event=heard.append, **given)
    assert torch.equal(batch.images, wanted.images)
    assert state.keys() == carried.keys()
    assert all(torch.equal(state[name], carried[name]) for name in carried)
    assert batch.summary()["lr"] == 0.025
    assert [type(event) for event in heard] == [Hint, Hint]
    steps = {"pixels": 25, "generator": 45}[images]
    line = f"ce became nan at image step 25 of {steps} of the batch: it begins again at "
    assert heard[0] == Hint(line + "0.5 of the rate")


def test_r_feature_without_batch_norm_is_refused() -> None:
    card = Card(
        architecture="none",
        weights="random",
        source="",
        num_classes=10,
        input_size=(1, 16, 16),
        mean=(0.5,),
        std=(0.5,),
        interpolation="bicubic",
        crop_pct=1.0,
        parameters=0,
        pretrained=False,
    )
    plain = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), card)
    with pytest.raises(NoBatchNormError):
        synthesise(plain)


def test_frozen_puts_everything_back(digits: Classifier) -> None:
    module = digits.module
    first, *rest = module.parameters()
    first.requires_grad_(False)
    try:
        with pytest.raises(KeyError), frozen(module):
            raise KeyError
        with frozen(module):
            assert not any(p.requires_grad for p in module.parameters())
        assert not first.requires_grad
        assert all(p.requires_grad for p in rest)
    finally:
        first.requires_grad_(True)


def test_inputs_and_images_are_inverse_and_rounded() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    inputs = normalise(images, mean=(0.4,), std=(0.3,))
    assert torch.equal(to_uint8(inputs, mean=(0.4,), std=(0.3,)), images)
    # 0.6 of a grey level is nearer to the next one; truncation would lose it.
    assert int(to_uint8(torch.full((1, 1, 1, 1), 99.6 / 255), mean=(0.0,), std=(1.0,))) == 100
    assert torch.allclose(normalise(images.float() / 255, mean=(0.4,), std=(0.3,)), inputs)
