"""The alpha-divergence of a student from its teacher: exact, and the clipped surrogate that is trained in its place.

Wang, Gong, Li, Chandra, "AlphaNet: Improved Training of Supernets with Alpha-Divergence", ICML 2021. The value of the
surrogate means nothing: its gradient is that of the divergence (with weights clipped), its constant is arbitrary, so a curve
of it may fall while the student gets worse. :func:`value` and :func:`adaptive_value` can be read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import wide

NEAR = 1e-3
"""Nearer than this to 0 and to 1 the divergence is its limit there, a KL divergence."""


def divergence(student: Tensor, teacher: Tensor, alpha: float, temperature: float = 1.0) -> Tensor:
    """T^2 D_alpha(p || q) a row, D = [sum_c p^alpha q^(1 - alpha) - 1] / (alpha (alpha - 1)). Logits [N,C] each; returns [N].

    p is the teacher's distribution at T, q the student's. alpha = 1 is KL(p || q), alpha = 0 is KL(q || p).
    """
    p, q = _logarithms(student, teacher, temperature)
    if abs(alpha) < NEAR:
        rows = (q.exp() * (q - p)).sum(-1)
    elif abs(alpha - 1) < NEAR:
        rows = (p.exp() * (p - q)).sum(-1)
    else:
        rows = torch.logsumexp(alpha * p + (1 - alpha) * q, dim=-1).expm1() / (alpha * (alpha - 1))
    return rows * temperature**2


def adaptive(
    student: Tensor, teacher: Tensor, low: float = -1.0, high: float = 1.0, clip: float = 5.0, temperature: float = 1.0
) -> Tensor:
    """T^2 times the surrogate of whichever of ``low`` and ``high`` is the larger divergence of a row. [N,C] each; returns [N].

    A negative alpha punishes a student that is sure where its teacher is not, a positive one the opposite.
    """
    chosen = value(student, teacher, low, clip, temperature) > value(student, teacher, high, clip, temperature)
    lower, upper = (surrogate(student, teacher, alpha, clip, temperature) for alpha in (low, high))
    return torch.where(chosen, lower, upper) * temperature**2


def adaptive_value(
    student: Tensor, teacher: Tensor, low: float = -1.0, high: float = 1.0, clip: float = 5.0, temperature: float = 1.0
) -> Tensor:
    """T^2 times the divergence whose surrogate :func:`adaptive` trains, the larger of the two, without a gradient. Returns [N]."""
    lower, upper = (value(student, teacher, alpha, clip, temperature) for alpha in (low, high))
    return torch.maximum(lower, upper) * temperature**2


@torch.no_grad()
def value(student: Tensor, teacher: Tensor, alpha: float, clip: float = math.inf, temperature: float = 1.0) -> Tensor:
    """The divergence a row with (p/q)^alpha cut at ``clip``, without a gradient. Logits [N,C] each; returns [N]."""
    p, q = _logarithms(student, teacher, temperature)
    if abs(alpha) < NEAR:
        return -(q.exp() * (p - q).clamp(max=math.log(clip))).sum(-1)
    if abs(alpha - 1) < NEAR:
        return (p.exp() * (p - q)).sum(-1)
    return (q.exp() * (_power(p - q, alpha, clip) - 1)).sum(-1) / (alpha * (alpha - 1))


def surrogate(student: Tensor, teacher: Tensor, alpha: float, clip: float = math.inf, temperature: float = 1.0) -> Tensor:
    """-sum_c sg(q rho) log q a row, whose gradient is the divergence's where nothing is cut. [N,C] each; returns [N]."""
    p, q = _logarithms(student, teacher, temperature)
    return -(_weights(p.detach(), q.detach(), alpha, clip) * q).sum(-1)


def _weights(p: Tensor, q: Tensor, alpha: float, clip: float) -> Tensor:
    """q rho of each class, from the logarithms of both distributions."""
    if abs(alpha) < NEAR:
        return q.exp() * ((p - q).clamp(max=math.log(clip)) - 1)
    if abs(alpha - 1) < NEAR:
        return p.exp()
    return q.exp() * (_power(p - q, alpha, clip) / alpha + 1 / (alpha * (alpha - 1)))


def _power(ratio: Tensor, alpha: float, clip: float) -> Tensor:
    """(p/q)^alpha from log(p/q), cut before it can overflow."""
    return (alpha * ratio).clamp(max=math.log(clip)).exp()


def _logarithms(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p of the teacher, log q of the student."""
    return F.log_softmax(wide(teacher) / temperature, dim=-1), F.log_softmax(wide(student) / temperature, dim=-1)
