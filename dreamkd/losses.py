"""The equations, one pure function each.

Every term is a mean over images or a statistic of the batch: no weight depends on its size. Terms
that each image has for itself are returned per image, (B,); their mean is taken by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkd.moments import Moments, Stored, distances, materialised


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """L(x, y): cross-entropy of the teacher, per image (Yin et al. 2020, Eq. 2).

    Args:
        logits: (B, classes). labels: (B,) int64.
    Returns: (B,), each >= 0.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def r_feature(moments: Moments, stored: Stored, *, first_scale: float = 1.0) -> Tensor:
    """R_feature: distance between batch and running statistics (Yin et al. 2020, Eq. 4-6).

        sum_l ||mean_l - running_mean_l||_2 + ||var_l - running_var_l||_2

    Eq. 4 prints sigma where the text and Eq. 6 mean the variance, used here.

    Args:
        moments: of the batch, all batch-norm calls end to end, (C,), float32.
        stored: what the network stores for these calls.
        first_scale: multiplier of the first executed layer: 1 in the paper, 10 as released.
    Returns: scalar >= 0, with a finite gradient also where the statistics agree.
    """
    norms = distances(moments, stored)
    return first_scale * norms[0] + norms[1:].sum()


def tv_l2(x: Tensor) -> Tensor:
    """R_TV of Eq. 3 as released: Euclidean norms of four difference images, per image.

        ||d_right||_2 + ||d_down||_2 + ||d_down-right||_2 + ||d_up-right||_2

    The released scripts take each norm over the whole batch; a weight of theirs is multiplied by
    sqrt(batch) to mean the same here.

    Args: x: (B, C, H, W).
    Returns: (B,), each >= 0.
    """
    norms: Tensor = _Variation.apply(*_lines(x))  # (4, B)
    return norms.sum(0)


def tv_l1(x: Tensor) -> Tensor:
    """Mean absolute difference to the four neighbours, summed over directions, per image: (B,)."""
    differences = _differences(*_lines(x))
    # Where a side is one pixel long there are none in its direction.
    means = [d.abs().sum((1, 2, 3)) / max(1, d[0].numel()) for d in differences]
    return torch.stack(means).sum(0)


def _lines(x: Tensor) -> tuple[Tensor, int]:
    """(B, C, H, W) as (B, planes, H, length), contiguous, and how far the next pixel is in a line.

    With the channels last, a line holds all of them: the loops over it stay long and plain.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x, 1
    return x.permute(0, 2, 3, 1).flatten(2)[:, None], x.shape[1]


def _differences(lines: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right, down, down-right and up-right differences of the images in `lines`."""
    return (
        lines[..., step:] - lines[..., :-step],
        lines[..., 1:, :] - lines[..., :-1, :],
        lines[..., 1:, step:] - lines[..., :-1, :-step],
        lines[..., :-1, step:] - lines[..., 1:, :-step],
    )


class _Variation(torch.autograd.Function):
    """The Euclidean norms (4, B) of the differences; what has no difference has no gradient.

    d_lines = sum_i d_norm_i / norm_i * (difference_i at its end - difference_i at its start)
    """

    @staticmethod
    def forward(lines: Tensor, step: int) -> Tensor:
        squares = [d.square().sum(3).sum((1, 2)) for d in _differences(lines, step)]
        return torch.stack(squares).sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.step = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        lines, norms = ctx.saved_tensors
        s = ctx.step
        # Zeros (left, right, above, below) that put a difference at its end, and at its start.
        ends = (s, 0, 0, 0), (0, 0, 1, 0), (s, 0, 1, 0), (s, 0, 0, 1)
        starts = (0, s, 0, 0), (0, 0, 0, 1), (0, s, 0, 1), (0, s, 1, 0)
        factors = materialised(torch.where(norms > 0, gradient / norms, 0))[:, :, None, None, None]
        total = torch.zeros_like(lines)
        for factor, d, end, start in zip(
            factors, _differences(lines, s), ends, starts, strict=True
        ):
            total = total + F.pad(factor * d, end) - F.pad(factor * d, start)
        return total, None


def l2(x: Tensor) -> Tensor:
    """R_l2 of Eq. 3: Euclidean norm per image of (B, C, H, W): (B,)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3))
    return norms


#: Option -> prior of the images, per image.
PRIORS: Mapping[str, Callable[[Tensor], Tensor]] = {"tv_l1": tv_l1, "tv_l2": tv_l2, "l2": l2}


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Log probabilities, log softmax(z / tau), of logits (B, classes): float32 (B, classes)."""
    return F.log_softmax(logits.float() / temperature, dim=1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of rows of log probabilities (B, classes): (B,)."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def jensen_shannon(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """JS(p_T, p_S) of Eq. 8, per image, in log space.

        JS = KL(p_T || M) / 2 + KL(p_S || M) / 2,   M = (p_T + p_S) / 2

    The released code clamps probabilities to [0.01, 0.99], which leaves no gradient at 1,000
    classes; log space needs no clamp.

    Args:
        teacher: logits (B, classes). student: logits (B, classes).
        temperature: both are divided by it; 1 in Eq. 8, 3 in the released code.
    Returns: (B,), each within [0, ln 2].
    """
    log_p, log_q = softened(teacher, temperature), softened(student, temperature)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def competition(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """R_c = 1 - JS, per image (Yin et al. 2020, Eq. 8): low where the networks disagree."""
    return 1 - jensen_shannon(teacher, student, temperature=temperature)


def agreed_divergence(teacher: Tensor, student: Tensor, *, temperature: float = 1.0) -> Tensor:
    """What generators compete with, per image: low where the student differs but is not wrong.

        -[argmax z_T = argmax z_S] KL(p_T || p_S)

    Where the networks name different classes, nothing is gained by driving them further apart
    (Fang et al. 2021, 2022).

    Args:
        teacher: logits (B, classes). student: logits (B, classes).
        temperature: both are divided by it; 1 in the papers.
    Returns: (B,), <= 0.
    """
    log_p, log_q = softened(teacher, temperature), softened(student, temperature)
    agree = teacher.argmax(1) == student.argmax(1)
    return -(agree * _kl(log_p, log_q))


#: `--competition-loss` -> function of the logits of teacher and student.
COMPETITION = {"js": competition, "kl": agreed_divergence}


def hard_labels(logits: Tensor, targets: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy with the labels themselves, mean over images.

    Args:
        logits: (B, classes). targets: probabilities (B, classes); one-hot unless images are mixed.
        smoothing: share of every target that is spread over all classes, in [0, 1).
    Returns: scalar >= 0.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def distillation(teacher: Tensor, student: Tensor, *, temperature: float) -> Tensor:
    """Knowledge distillation with softened outputs (Yin et al. 2020, Eq. 1), mean over images.

        tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau))

    Eq. 1 has no tau^2; the factor keeps the gradient's size at every temperature (Hinton et al.
    2015).

    Args:
        teacher: logits (B, classes). student: logits (B, classes).
        temperature: tau > 0.
    Returns: scalar >= 0.
    """
    log_p, log_q = softened(teacher, temperature), softened(student, temperature)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


class SparseOutputs(NamedTuple):
    """k outputs of a network for each image, softened by a temperature."""

    classes: Tensor  # int32 (B, k)
    log_prob: Tensor  # float16 (B, k): log softmax(z / tau) of these


#: Of half precision; e to it is 0.
_LEAST = torch.finfo(torch.half).min


def sparse(log_p: Tensor, k: int, *, generator: torch.Generator | None) -> SparseOutputs:
    """Some of the outputs of each image: the larger half are the largest, the others drawn.

    The largest alone would say the same of every other class; drawn anew for every view, each is
    told of in its turn.

    Args:
        log_p: (B, classes), log softmax(z / tau).
        k: how many; all of them where it is larger.
        generator: source of randomness (CPU).
    """
    count = log_p.shape[1]
    k = min(k, count)
    first = log_p.topk(_largest(k), dim=1).indices
    draws = torch.rand(log_p.shape, generator=generator).to(log_p.device, non_blocking=True)
    drawn = draws.scatter(1, first, -1.0).topk(k - first.shape[1], dim=1).indices
    index = torch.cat([first, drawn], dim=1)
    chosen = log_p.gather(1, index).clamp_min(_LEAST)
    return SparseOutputs(index.int(), chosen.half())


def distillation_from_sparse(
    teacher: SparseOutputs, student: Tensor, *, temperature: float
) -> Tensor:
    """`distillation` from some of the teacher's outputs, of which it is an unbiased estimate.

    Of the classes that are not among the largest, the mean p is known; those drawn say, each in its
    turn, how far it is from that:

        t_k = p_k              of the largest
        t_k = m + c (p_k - m)  of those drawn,  c = (classes - largest) / drawn
        t_k = m                of the others,   m = (1 - sum_largest p) / (classes - largest)

    and the gradient is that of -tau^2 sum_k t_k log q_k. With one output the rest is spread evenly;
    with all of them it differs from `distillation` by the rounding of half precision.

    Args:
        teacher: k outputs of each image, at this temperature. student: logits (B, classes).
    Returns: scalar.
    """
    log_q = softened(student, temperature)
    index, log_p = teacher.classes.long(), teacher.log_prob.float()
    p, kept = log_p.exp(), log_q.gather(1, index)
    first = _largest(index.shape[1])
    others, drawn = log_q.shape[1] - first, index.shape[1] - first
    loss = (p * (log_p - kept))[:, :first].sum(1)
    if others:
        mean = ((1 - p[:, :first].sum(1)) / others).clamp_min(1e-8)  # half precision may exceed 1
        loss -= mean * (log_q.sum(1) - kept[:, :first].sum(1))
        if drawn:
            p, log_p, kept = (part[:, first:] for part in (p, log_p, kept))
            loss += others / drawn * (p * log_p - (p - mean[:, None]) * kept).sum(1)
        else:
            loss += others * mean * mean.log()
    return loss.mean() * temperature**2


def _largest(k: int) -> int:
    """How many of `k` outputs are the largest; they come first."""
    return -(-k // 2)
