"""What is measured on a model before a run: the weight of R_feature, images that fit."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from dreamkd import calibration, models
from dreamkd.augment import draw_view, see
from dreamkd.config import InvertConfig, settle
from dreamkd.engine import Runtime, enough_memory, memory, normalise
from dreamkd.errors import ConfigError, RunError
from dreamkd.events import Event, Note, Progress, ignore
from dreamkd.images import Pixels
from dreamkd.models import Classifier
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.preparation import _measured, settled
from dreamkd.randomness import generator_for
from tests.conftest import distill_config, invert_config

SIZE = (3, 32, 32)


def settings(digits: Classifier, scale: float = 2.0) -> InvertConfig:
    config = invert_config(r_feature_scale=scale)
    return settle(config, input_size=digits.card.input_size)


@pytest.mark.parametrize("own", [True, False], ids=["own statistics", "those of a prior"])
def test_the_weight_is_of_the_root_of_the_gradients_on_noise(digits: Classifier, own: bool) -> None:
    prior = None if own else Classifier(digits.module, replace(digits.card, std=(0.1,)))
    networks = Networks(digits, prior=prior)
    config = settings(digits, 2.0)
    weight = calibration.r_feature_weight(networks, config, seed=0)
    x, labels, view = calibration._noise(digits.card, 64, seed=0)
    norms = []
    for ce, r_feature in ((1.0, 0.0), (0.0, weight)):
        alone = replace(config, ce=ce, r_feature=r_feature, image_chunk=64)
        runtime = Runtime.settle(alone)
        with Objective(networks, alone, runtime=runtime) as objective:
            norms.append(float(objective(x, labels, view).gradient.norm()))
    # norms[1] is weight x ||d R||, and weight = 2 sqrt(||d L|| / ||d R||).
    assert weight * norms[1] / norms[0] == pytest.approx(4.0, rel=0.01)


def test_the_weight_is_proportional_to_the_scale_and_repeatable(digits: Classifier) -> None:
    one, two, again = (
        calibration.r_feature_weight(Networks(digits), settings(digits, scale), seed=0)
        for scale in (1.0, 3.0, 1.0)
    )
    assert (
        one
        == again
        != calibration.r_feature_weight(Networks(digits), settings(digits, 1.0), seed=1)
    )
    assert two == pytest.approx(3 * one, rel=0.01)


def test_what_a_forward_pass_keeps_grows_with_the_images(digits: Classifier) -> None:
    one, four = (memory.saved_bytes(digits.module, torch.zeros(n, 1, 16, 16)) for n in (1, 4))
    assert 3.5 * one < four <= 4 * one
    # The first convolution keeps at least its input, the batch norm after it 16 channels of it.
    assert one > 17 * 16 * 16 * 4


def test_the_chunk_is_what_is_free_over_what_one_image_takes() -> None:
    assert memory.images_that_fit(100, free=1000) == 4  # 0.8 * 1000 / (2 * 100)
    assert memory.images_that_fit(10**9, free=1000) == 1


def test_a_batch_that_fits_is_not_cut(digits: Classifier) -> None:
    config = settings(digits)
    runtime = Runtime.settle(config)
    assert (
        calibration.image_chunk(Networks(digits), config, runtime=runtime)
        == config.image_batch_size
    )


def test_a_rival_takes_its_share_of_the_memory(
    digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "free_memory", lambda: 20_000_000)
    config = settle(distill_config(image_batch_size=257), input_size=digits.card.input_size)
    runtime = Runtime.settle(config)
    alone = calibration.image_chunk(Networks(digits), config, runtime=runtime)
    beside = calibration.image_chunk(Networks(digits, rival=digits.copy()), config, runtime=runtime)
    assert 1 < beside < alone < 257  # a prime number: there are no equal parts


@pytest.mark.parametrize(
    ("count", "most", "size"), [(10, 4, 2), (10, 5, 5), (84, 33, 28), (130, 500, 130), (7, 4, 4)]
)
def test_a_batch_is_cut_into_equal_parts_where_they_are_not_small(
    count: int, most: int, size: int
) -> None:
    assert memory.even_chunk(count, most) == size


@pytest.mark.parametrize("statistics", [True, False])
def test_the_trial_takes_statistics_where_the_job_does(
    digits: Classifier, statistics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator, for which `cpu:0` stands here."""
    asked: list[bool] = []

    @contextmanager
    def objective(*_: object, statistics: bool, **__: object) -> Iterator[Callable[..., None]]:
        asked.append(statistics)
        yield lambda *_: None

    monkeypatch.setattr(calibration, "Objective", objective)
    monkeypatch.setattr(calibration, "spare_bytes", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    runtime = Runtime("cpu:0", "fp32", 1)
    method = "deepinversion" if statistics else "deepdream"
    decided = _measured(
        settle(
            invert_config(method=method, r_feature=1.0 if statistics else "auto"),
            input_size=digits.card.input_size,
        ),
        Networks(digits),
        runtime=runtime,
        on_event=ignore,
    )
    assert decided.image_chunk == 20
    assert asked == [statistics]


def test_weights_that_autocast_casts_are_no_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10))
    with Runtime("cpu", "bf16", 1).autocast():
        # The activation's result, and the input of each product, in half precision.
        assert memory.saved_per_image(model.requires_grad_(False), (1, 8, 8)) < 4 * 4096


def test_a_network_of_one_class_asks_for_a_weight() -> None:
    network = models.load("cifar_resnet8", pretrained=False, num_classes=1, input_size=SIZE)
    config = settle(invert_config(), input_size=SIZE)
    with pytest.raises(ConfigError, match="the class loss has no gradient to set a weight by"):
        calibration.r_feature_weight(Networks(network), config, seed=0)


def test_only_running_out_of_memory_is_put_into_other_words() -> None:
    line = r"^the device ran out of memory: buy more"
    with pytest.raises(RunError, match=line), enough_memory("buy more"):
        raise torch.OutOfMemoryError
    with pytest.raises(RuntimeError, match=r"^another reason$"), enough_memory("buy more"):
        raise RuntimeError("another reason")


def test_running_out_of_memory_halves_the_images_until_they_fit() -> None:
    tried = []

    def attempt(count: int) -> None:
        tried.append(count)
        if count > 40:
            raise torch.OutOfMemoryError

    assert memory.largest_that_fits(attempt, 257) == 33
    assert tried == [257, 129, 65, 33]
    with pytest.raises(torch.OutOfMemoryError):
        memory.largest_that_fits(lambda count: attempt(count + 40), 5)


def trained_with(border: str, shift: int = 4) -> Classifier:
    """A network of random weights whose statistics are of noise seen with such borders."""
    usual = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    network = models.create("cifar_resnet8", num_classes=10, input_size=SIZE, **usual)
    images = Pixels(SIZE, **usual, clip=True, start="natural")
    black = normalise(torch.zeros(3, 1, 1), **usual)
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    network.module.train()
    for k in range(4):
        generator = generator_for(0, "views", k)
        images.begin(64, generator)
        view = draw_view(64, shift=shift, flip=True, smallest=None, generator=generator)
        with torch.no_grad():
            network.module(see(images.x, view, border=border, black=black[0]))
    network.module.eval()
    return network


def border_of(network: Classifier, **given: object) -> tuple[str, list[str]]:
    """What is decided, and what is told of it."""
    decided, told = measured(network, **given)
    return decided.jitter_border, [event.text for event in told if isinstance(event, Note)]


def measured(network: Classifier, **given: object) -> tuple[InvertConfig, list[Event]]:
    """The settings after all was measured, and what was told meanwhile."""
    told: list[Event] = []
    config = settled(invert_config(**{"r_feature": 1.0, **given}), Networks(network))
    decided = _measured(
        config,
        Networks(network),
        runtime=Runtime.settle(config),
        on_event=told.append,
    )
    return decided, told


@pytest.mark.parametrize(("border", "shift"), [("black", 4), ("mirror", 4), ("mirror", 0)])
def test_the_border_is_that_of_the_views_that_the_statistics_are_of(
    border: str, shift: int
) -> None:
    chosen, told = border_of(trained_with(border, shift), image_chunk=64)
    assert chosen == border
    (line,) = told
    pattern = (
        rf"--jitter-border {border}: R_feature (.+) in a short trial, (.+) with (black|mirror)"
    )
    found = re.fullmatch(pattern, line)
    assert found is not None
    assert float(found[1]) < float(found[2])
    assert found[3] != border


def test_what_is_measured_tells_how_far_it_has_come() -> None:
    """On a large network it takes a while."""
    network = models.load("cifar_resnet8", pretrained=False, num_classes=10, input_size=SIZE)
    _, told = measured(network, r_feature="auto", image_chunk=64)
    progress = [event for event in told if isinstance(event, Progress)]
    trials = [(f"trial of {border} borders", 24) for border in ("mirror", "black")]
    for phase, total in [("weight of R_feature", 2), *trials]:
        steps = [event.done for event in progress if event.phase == phase]
        assert steps == list(range(total - len(steps) + 1, total + 1))
        assert {event.total for event in progress if event.phase == phase} == {total}


@pytest.mark.parametrize(
    ("mirror", "black", "chosen"),
    [
        (100.0, 79.0, "black"),
        (100.0, 81.0, "mirror"),
        (math.inf, 100.0, "black"),
        (100.0, math.inf, "mirror"),
        (math.inf, math.inf, "mirror"),
    ],
)
def test_black_borders_are_chosen_where_they_bring_much(
    mirror: float, black: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what diverged is not."""
    levels = {"mirror": mirror, "black": black}
    monkeypatch.setattr(
        calibration, "_reached", lambda _, config, **__: levels[config.jitter_border]
    )
    network = models.load("cifar_resnet8", pretrained=False, num_classes=10, input_size=SIZE)
    assert border_of(network)[0] == chosen


@pytest.mark.parametrize(
    ("given", "border"),
    [
        ({"jitter_border": "wrap"}, "wrap"),
        ({"preset": "released"}, "wrap"),
        ({"preset": "paper"}, "wrap"),
        ({"method": "deepdream", "r_feature": "auto"}, "wrap"),
        ({"r_feature": 0.0}, "wrap"),
        ({"jitter": 0}, "auto"),
    ],
    ids=str,
)
def test_no_border_is_tried_where_none_is_asked_for(
    given: dict[str, object], border: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_reached", None)
    network = models.load("cifar_resnet8", pretrained=False, num_classes=10, input_size=SIZE)
    assert border_of(network, **given) == (border, [])


def test_no_border_is_tried_for_small_or_large_images(
    digits: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_reached", None)
    assert border_of(digits) == ("wrap", [])
    large = models.load("cifar_resnet8", pretrained=False, num_classes=10, input_size=(3, 64, 64))
    assert border_of(large) == ("wrap", [])
