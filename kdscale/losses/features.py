"""Losses between the maps of a student and of a teacher, a number an image. Maps are [B,C,H,W]; a target is not detached here.

Where two maps differ in size the larger one is averaged down, whichever network it is of; only heights are compared.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .precision import wide


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B,.,H,W] at the smaller height of the two (and that map's width), the larger one averaged over its pixels."""
    mine, theirs = student.shape[-2], teacher.shape[-2]
    if mine > theirs:
        return F.adaptive_avg_pool2d(student, (teacher.shape[-2], teacher.shape[-1])), teacher
    if mine < theirs:
        return student, F.adaptive_avg_pool2d(teacher, (student.shape[-2], student.shape[-1]))
    return student, teacher


def hint(adapted: Tensor, teacher: Tensor) -> Tensor:
    """Mean over an image's elements of (adapted - teacher)^2, maps of one shape. Returns [B].

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, without its halves.
    """
    return (wide(adapted) - wide(teacher)).square().mean((1, 2, 3))


def attention(features: Tensor) -> Tensor:
    """The unit vector [B,HW] of where a map [B,C,H,W] is large: the mean over channels of its squares; zeros stay zeros."""
    return F.normalize(wide(features).square().mean(1).flatten(1), dim=1)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over places of (A(student) - A(teacher))^2, A the attention of a map. Returns [B].

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. The channels need not agree. The maps are
    brought to one size before they are squared; the paper's norm of the difference is not used by the benchmark.
    """
    student, teacher = same_size(wide(student), wide(teacher))
    return (attention(student) - attention(teacher)).square().mean(1)
