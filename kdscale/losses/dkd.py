"""Decoupled knowledge distillation: what the teacher says of the label, and what it says of all other classes, apart.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022. Ordinary KD weighs the second by how unsure the
teacher is. The logarithm of 1 - p is taken as a log-sum-exp: as the logarithm of a probability, as the published program
has it, it is -inf for a student that is sure in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import wide


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(T^2 KL of label against rest, T^2 KL among the rest) a row. Logits [N,C] each, ``labels`` [N] int64; returns [N] each.

    A row whose label is -100 is read as if its label were 0: its caller leaves it out.
    """
    own = F.one_hot(labels.clamp(min=0), student.shape[-1]).bool()
    (p, p_rest), (q, q_rest) = (_split(z, own, temperature) for z in (teacher, student))
    p_own, q_own = (z.masked_fill(~own, 0.0).sum(-1) for z in (p, q))
    label = p_own.exp() * (p_own - q_own) + p_rest.exp() * (p_rest - q_rest)
    among = ((p - p_rest[:, None]) - (q - q_rest[:, None])).masked_fill(own, 0.0)
    share = (p - p_rest[:, None]).masked_fill(own, -torch.inf).exp()
    return label * temperature**2, (share * among).sum(-1) * temperature**2


def decoupled_mixed(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """:func:`decoupled` with each of the two labels that were mixed, in their shares. ``targets`` [N,C]; returns [N] each.

    What smoothing laid under all classes is taken off the targets first, for a smoothed label is one label here.
    """
    top = targets.topk(2, dim=-1)
    heights = wide(top.values) - wide(targets).amin(-1, keepdim=True)
    share = heights[:, 0] / heights.sum(-1).clamp(min=torch.finfo(heights.dtype).tiny)
    first, second = (decoupled(student, teacher, top.indices[:, place], temperature) for place in (0, 1))
    label, rest = (share * a + (1 - share) * b for a, b in zip(first, second, strict=True))
    return label, rest


def _split(logits: Tensor, own: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p [N,C], and the logarithm [N] of what all classes but ``own`` have together."""
    p = F.log_softmax(wide(logits) / temperature, dim=-1)
    return p, p.masked_fill(own, -torch.inf).logsumexp(-1)
