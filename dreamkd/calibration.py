"""What is measured once on a model before its run begins, and then recorded.

The weight of R_feature, which is specific to an architecture: one that suits a network fails on
another. The border of its views, which follows from how it was trained. And how many images can be
differentiated at once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dreamkd import losses
from dreamkd.augment import View, draw_view
from dreamkd.config import DistillConfig, InvertConfig
from dreamkd.copying import twin
from dreamkd.course import Course
from dreamkd.engine import Runtime, spare_bytes
from dreamkd.engine.available import free_memory
from dreamkd.engine.memory import even_chunk, images_that_fit, largest_that_fits, saved_per_image
from dreamkd.errors import ConfigError
from dreamkd.events import Note, OnEvent, Progress, ignore
from dreamkd.images import Pixels
from dreamkd.models import Card
from dreamkd.networks import Networks
from dreamkd.objective import Objective
from dreamkd.randomness import generator_for

#: Images on which the gradients are compared, and how many of them at once: in float32 on the CPU a
#: large network keeps a fifth of a gigabyte for each.
_IMAGES, _CHUNK = 64, 8

#: Steps by which a border is found, Adam's rate in them at first, and how many of the last count.
_STEPS, _LR, _COMPARED = 24, 0.2, 6

#: Black it is where that brings R_feature below this share of what mirroring reaches: networks that
#: were trained with black borders have 0.6, others 1.0 to 1.2 (docs/benchmarks.md, "The border").
_BLACK = 0.8


def r_feature_weight(
    networks: Networks,
    config: InvertConfig | DistillConfig,
    *,
    seed: int,
    on_event: OnEvent = ignore,
) -> float:
    """The weight of R_feature, by `r_feature_scale` and the gradients of both losses.

        alpha_f = scale sqrt(||d L / d x||_2 / ||d R_feature / d x||_2)

    at white noise, whatever the images start from, in float32: the same on every device. Adam does
    not see the scale of the sum, only the balance of its terms; and what R_feature weighs
    differs by orders of magnitude between networks, with their number of layers and channels. The
    root: between networks, good weights differ less than the gradients on noise do.

    Args:
        networks: of which a rival has no part.
        config: settled but for the weight; `r_feature_scale` is a number.
    Returns: alpha_f > 0, rounded to three digits.
    Raises: ConfigError: the class loss has no gradient, as with a single class.
    """
    runtime = Runtime("cpu", "fp32", torch.get_num_threads())
    networks = replace(networks, rival=None)
    none: dict[str, Any] = dict.fromkeys(losses.PRIORS, 0.0)
    bare = replace(config, **none, image_chunk=_CHUNK)
    sizes: list[float] = []
    for ce, r_feature in ((1.0, 0.0), (0.0, 1.0)):
        on_event(Progress("weight of R_feature", len(sizes), 2, "gradients"))
        alone = replace(bare, ce=ce, r_feature=r_feature)
        statistics = r_feature > 0
        with Objective(networks, alone, runtime=runtime, statistics=statistics) as objective:
            x, labels, view = _noise(networks.teacher.card, _IMAGES, seed=seed)
            sizes.append(float(torch.linalg.vector_norm(objective(x, labels, view).gradient)))
    on_event(Progress("weight of R_feature", 2, 2, "gradients"))
    if sizes[0] == 0:
        weights = "--r-feature, and with a generator --refine-r-feature"
        raise ConfigError(f"the class loss has no gradient to set a weight by; give {weights}")
    weight = float(config.r_feature_scale) * math.sqrt(sizes[0] / max(sizes[1], 1e-12))
    return float(f"{weight:.2e}")


def jitter_border(
    networks: Networks,
    config: InvertConfig | DistillConfig,
    *,
    runtime: Runtime,
    seed: int,
    on_event: OnEvent = ignore,
) -> str:
    """What a shift brings in at the border of views like those that the teacher was trained with.

    What a network stores is of its training views, and images come close to it only if they are
    seen alike: black borders that training did not have, or had and that are missing, remain in
    R_feature whatever the pixels do. So the same noise takes the same short course, with R_feature
    as its only loss, once with each border that training augmentations bring in.

    Args:
        networks: of which a rival has no part.
        config: settled but for the border and the weight of R_feature.
        runtime: of the job: in float32 on the CPU a large network would take minutes.
    Returns: `black` or `mirror`.
    """
    none: dict[str, Any] = dict.fromkeys(losses.PRIORS, 0.0)
    chunk = min(_IMAGES, int(config.image_chunk))
    alone = replace(config, **none, image_chunk=chunk, ce=0.0, r_feature=1.0, first_bn=1.0)
    reached = {
        border: _reached(
            replace(networks, rival=None),
            replace(alone, jitter_border=border),
            runtime=runtime,
            seed=seed,
            on_event=on_event,
        )
        for border in ("mirror", "black")
    }
    black = reached["black"] < _BLACK * reached["mirror"]
    chosen, other = ("black", "mirror") if black else ("mirror", "black")
    trial = f"R_feature {reached[chosen]:.3g} in a short trial, {reached[other]:.3g} with {other}"
    on_event(Note(f"--jitter-border {chosen}: {trial}"))
    return chosen


def _reached(
    networks: Networks,
    config: InvertConfig | DistillConfig,
    *,
    runtime: Runtime,
    seed: int,
    on_event: OnEvent,
) -> float:
    """R_feature at the end of a short course of 64 images; infinite if they diverge."""
    card = networks.teacher.card
    course = Course(
        stages=((1, _STEPS),),
        lr=_LR,
        betas=(0.5, 0.9),
        schedule="cosine",
        warmup=0,
        r_feature=config.r_feature,
        averaged=False,
    )
    generator = generator_for(seed, "border")
    images = Pixels(
        card.input_size,
        mean=card.mean,
        std=card.std,
        clip=True,
        start="natural",
        device=runtime.device,
    )
    images.begin(_IMAGES, generator)
    optimizer = course.optimizer(images)
    levels: list[float] = []
    labels = torch.zeros(_IMAGES, dtype=torch.int64, device=runtime.device)
    with Objective(networks, config, runtime=runtime) as objective:
        for step in range(_STEPS):
            course.set_rate(optimizer, step, _STEPS)
            view = draw_view(
                _IMAGES,
                shift=int(config.jitter),
                flip=config.flip == "on",
                smallest=None,
                generator=generator,
            )
            loss = objective(images.x, labels, view.to(runtime.device))
            optimizer.zero_grad()
            torch.autograd.backward(images.x, loss.gradient)
            optimizer.step()
            images.project()
            levels.append(float(loss.terms[-1]))  # host sync
            trial = f"trial of {config.jitter_border} borders"
            on_event(Progress(trial, step + 1, _STEPS, "steps", {"r_feature": levels[-1]}))
    level = sum(levels[-_COMPARED:]) / _COMPARED
    return level if math.isfinite(level) else math.inf


def image_chunk(
    networks: Networks,
    config: InvertConfig | DistillConfig,
    *,
    runtime: Runtime,
    statistics: bool = True,
) -> int:
    """How many images can be differentiated at once, at most `image_batch_size`.

    On CUDA by trial, recovering from running out of memory; on the CPU, which would be killed
    instead, by what a forward pass of one image keeps and what is free.

    Args:
        config: settled; a weight of R_feature that is not known yet does not matter.
        statistics: whether R_feature is part of the loss.
    """
    count, device = int(config.image_batch_size), runtime.device
    if device == "cpu":
        one = 0
        for network in networks:
            with runtime.autocast():
                one += saved_per_image(twin(network.module), network.card.input_size)
        return even_chunk(count, images_that_fit(one, free=free_memory()))

    def attempt(size: int) -> None:
        # Held meanwhile: what the images at hand and recorded steps will take.
        beside = torch.empty(2 * spare_bytes(device), dtype=torch.uint8, device=device)
        border = "mirror" if config.jitter_border == "auto" else config.jitter_border
        tried = replace(config, image_chunk=size, r_feature=1.0, jitter_border=border)
        with Objective(networks, tried, runtime=runtime, statistics=statistics) as objective:
            x, labels, view = _noise(networks.teacher.card, size, seed=0)
            objective(x.to(device), labels.to(device), view.to(device))
            torch.cuda.synchronize(device)  # host sync: until then nothing has run out
        del beside

    return even_chunk(count, largest_that_fits(attempt, count))


def _noise(card: Card, count: int, *, seed: int) -> tuple[Tensor, Tensor, View]:
    """A start (B, C, H, W), labels (B,), round robin, and a view of the images as they are."""
    generator = generator_for(seed, "calibration")
    pixels = Pixels(card.input_size, mean=card.mean, std=card.std, clip=True)
    pixels.begin(count, generator)
    view = draw_view(count, shift=0, flip=False, smallest=None, generator=generator)
    return pixels.inputs().detach(), torch.arange(count) % card.num_classes, view
