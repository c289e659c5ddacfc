"""How far a student's stage is from its teacher's: the squared distance, in three reductions that differ in scale alone.

Gao et al., "An Embarrassingly Simple Approach for Knowledge Distillation" (arXiv:1812.01819), write the plain squared norm.
At the learning rate of 0.01 that they give it diverges, so the mean over all elements is the usual reading.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from .precision import wide

Reduction = Literal["mean", "channel_sum", "batch_sum"]
Resize = Literal["bilinear", "avgpool"]


def stage_distance(student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """(student - teacher)^2 of each image. Both [B,C,...]; returns [B].

    'mean' is the mean over its elements, 'batch_sum' their sum, 'channel_sum' the sum over channels and the mean over places.
    """
    squares = (wide(student) - wide(teacher)).square().mean(tuple(range(1, student.ndim)))
    if reduction == "mean":
        return squares
    return squares * (student.shape[1] if reduction == "channel_sum" else student[0].numel())


def resized(x: Tensor, size: tuple[int, int], how: Resize = "bilinear") -> Tensor:
    """``x`` [B,C,H,W] at another size. The two agree where the size is exactly halved."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if how == "avgpool":
        return functional.adaptive_avg_pool2d(x, size)
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)
