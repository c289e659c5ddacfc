"""Weights of several teachers that agree with one another best: the shortest convex combination of their gradients.

Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", NeurIPS 2020. The published
program hands this small quadratic problem to a one-class support vector machine; here every choice of bounds that can hold
at the optimum is solved at once, which is exact, and no number leaves the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import RecipeError
from .precision import wide

MOST = 8
"""Teachers: each choice of bounds is one of 3^K small linear systems."""
SLACK = 1e-9  # of a bound, for rounding
RIDGE = 1e-9  # of the Gram matrix's trace: teachers that say the same share their weight


@torch.no_grad()
def mean_gradient(student: Tensor, target: Tensor, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Mean over the batch of the gradient of KD in the student's logits, T (softmax(s/T) - softmax(t/T)). [N,C] each; returns [C].

    ``valid`` [N] bool: the other rows count as zeros, so that means of ranks of equal size add up to the whole batch's.
    """
    rows = temperature * (F.softmax(wide(student) / temperature, dim=-1) - F.softmax(wide(target) / temperature, dim=-1))
    if valid is not None:
        rows = rows.masked_fill(~valid[:, None], 0.0)
    return rows.mean(0)


@torch.no_grad()
def aekd_weights(gradients: Tensor, tolerance: float = 0.6, normalise: bool = False) -> Tensor:
    """w [K] with the least |sum_k w_k g_k|, sum w = 1, 0 <= w_k <= ``tolerance``. ``gradients`` [K,C] of any common scale.

    ``tolerance`` 1/K gives every teacher the same, 1 the point of multiple gradient descent. ``normalise``: of directions
    alone; the weights are then divided by the lengths, and by their sum. Raises RecipeError for more than 8 teachers, and for
    a tolerance that K weights cannot reach 1 with.
    """
    count = len(gradients)
    check(count, tolerance)
    wanted = gradients.double()
    lengths = torch.linalg.vector_norm(wanted, dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    if normalise:
        wanted = wanted / lengths[:, None]
    weights = _shortest(_scaled_gram(wanted), tolerance)
    if normalise:
        weights = weights * lengths.min() / lengths
        weights = weights / weights.sum()
    return weights.to(gradients.dtype)


def check(count: int, tolerance: float) -> None:
    """Raises RecipeError where ``count`` weights of at most ``tolerance`` cannot be solved for."""
    if count > MOST:
        raise RecipeError(f"AEKD solves for at most {MOST} teachers, and there are {count}: take fewer, or weights='aver'")
    if tolerance * count < 1 - SLACK:
        raise RecipeError(
            f"weights of {count} teachers of at most {tolerance:g} cannot add up to 1: take a tolerance of {1 / count:.3g} or more"
        )


def _scaled_gram(gradients: Tensor) -> Tensor:
    """Inner products [K,K] with trace 1, or 0 where there is no gradient, and a ridge."""
    gram = gradients @ gradients.T
    trace = gram.diagonal().sum()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram / torch.where(trace > 0, trace, 1.0) + RIDGE * eye


def _shortest(gram: Tensor, tolerance: float) -> Tensor:
    """The minimum of w' G w over the bounded simplex: the best of all points that are stationary under some choice of bounds."""
    states = _choices(len(gram), gram.device)
    points = _stationary(gram, (states == 2).to(gram.dtype), (states == 1).to(gram.dtype) * tolerance)
    inside = (points >= -SLACK) & (points <= tolerance + SLACK)
    allowed = inside.all(-1) & ((points.sum(-1) - 1).abs() <= SLACK)
    lengths = torch.einsum("ni,ij,nj->n", points, gram, points)
    best = torch.where(allowed, lengths, torch.inf).argmin(0, keepdim=True)
    return points.index_select(0, best)[0].clamp(0.0, tolerance)  # points[best] would read the number


def _choices(count: int, device: torch.device) -> Tensor:
    """[3^K,K] int64: 0 at the lower bound, 1 at the upper one, 2 free."""
    place = 3 ** torch.arange(count, device=device)
    return torch.arange(3**count, device=device)[:, None] // place % 3


def _stationary(gram: Tensor, free: Tensor, bound: Tensor) -> Tensor:
    """[n,K]: where the free weights are stationary with sum 1 and the others at ``bound``; not finite where there is no such point.

    One linear system a choice, of the K weights and the multiplier of their sum.
    """
    count, anybody = len(gram), free.amax(-1, keepdim=True)
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    rows = free[:, :, None] * gram + (1 - free)[:, :, None] * eye
    side = torch.cat([rows, free[:, :, None]], dim=-1)
    last = torch.cat([anybody.expand(-1, count), 1 - anybody], dim=-1)
    matrix = torch.cat([side, last[:, None]], dim=-2)
    right = torch.cat([bound, anybody], dim=-1)
    solved: Tensor = torch.linalg.solve_ex(matrix, right).result  # solve() would wait for the device to report on it
    return solved[:, :count]
