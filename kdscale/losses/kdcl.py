"""The target that networks make together, in the four ways of KDCL, and the plain mean of a public program.

Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, section 3. Logits are [M,N,C] of M
networks; ``targets`` [N,C] are probabilities: one-hot labels, or what mixing made of them, for which "the logit of the
target class" is the mean of the logits under them. Each target is detached, as published.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .logits import soft_cross_entropy
from .precision import wide

ITERATIONS = 24
"""Of the solver for ``linear``: a fixed number, so that no number is read from the device."""
TRIALS = 4
"""Lengths of a step that the solver compares."""
RIDGE = 1e-6
"""Added to the diagonal of the matrix of errors: two networks that err alike leave it singular."""


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """``labels`` [N] as probabilities [N,C] of the type of ``logits`` [...,C]; a row without a label is all 0."""
    return (labels[:, None] == torch.arange(logits.shape[-1], device=labels.device)).to(logits.dtype)


def naive(logits: Tensor, targets: Tensor) -> Tensor:
    """In each row the logits of the network whose cross-entropy is smallest there. Returns [N,C]."""
    logits = wide(logits.detach())
    best = soft_cross_entropy(logits, targets).argmin(0)
    return logits.gather(0, best[None, :, None].expand(1, *logits.shape[1:]))[0]


def min_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """Each network's logits less the one of its target class; of these the least, class by class. Returns [N,C].

    Of all ways to take each class from some network it has the smallest cross-entropy with a hard label.
    """
    logits = wide(logits.detach())
    return (logits - (logits * targets).sum(-1, keepdim=True)).amin(0)


def mean(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the networks, whatever the ``targets``. Returns [N,C]."""
    return wide(logits.detach()).mean(0)


def combined(logits: Tensor, weights: Tensor) -> Tensor:
    """The sum of the networks' logits with ``weights`` [M]. Returns [N,C]."""
    logits = wide(logits.detach())
    with torch.autocast(logits.device.type, enabled=False):  # it would round the target to bf16
        return torch.einsum("m,mnc->nc", weights.to(logits.dtype), logits)


def error_products(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Sum over the ``valid`` rows [N] of the inner products <p_i - y, p_j - y>. Returns [M,M] float64."""
    errors = (wide(logits.detach()).softmax(-1) - targets).double() * valid[:, None]
    return torch.einsum("inc,jnc->ij", errors, errors)


def general_weights(errors: Tensor, ridge: float = RIDGE) -> Tensor:
    """Weights that sum to 1 and make the mean squared error of the summed predictions least; some may be negative.

    ``errors`` [M,M]: mean of :func:`error_products`. Returns C^-1 1 / 1'C^-1 1 [M].
    """
    ones = torch.ones_like(errors[0])
    solved: Tensor = torch.linalg.solve_ex(errors + ridge * torch.diag(ones), ones)[0]
    return solved / solved.sum()


def linear_weights(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Weights on the simplex that make the mean cross-entropy of the summed logits over ``valid`` rows least. Returns [M] float64.

    The problem is convex. A primal-dual interior point (Nocedal and Wright, Numerical Optimization, section 19.3) comes
    within 1e-6 of the least value, inside or on the border, for logits of up to some hundreds.
    """
    problem = _Simplex(logits, targets, valid)
    weights = torch.full_like(problem.z[:, 0, 0], 1 / len(logits))
    slope = problem.derivatives(weights)[0]
    steepness = slope.amax() - slope.amin() + 1e-9
    slopes = steepness.expand_as(weights)
    for _ in range(ITERATIONS):
        barrier = (0.1 * (weights @ slopes) / len(weights)).maximum(1e-12 * steepness)
        step, slope_step = _newton(weights, slopes, barrier, *problem.derivatives(weights))
        weights = problem.moved(weights, _within(weights, step) * step, barrier)
        slopes = slopes + _within(slopes, slope_step) * slope_step
    return weights


class _Simplex:
    """The mean over valid rows of CE(sum of x_i z_i, q), as a function of x [M]."""

    def __init__(self, logits: Tensor, targets: Tensor, valid: Tensor) -> None:
        self.z = logits.detach().double()  # [M,N,C]
        self.share = valid.double() / valid.sum().clamp(min=1)  # [N]
        self.labelled = torch.einsum("mnc,nc->mn", self.z, targets.double()) @ self.share  # [M]: the part that is linear in x

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [M] and Hessian [M,M]."""
        p = torch.einsum("m,mnc->nc", x, self.z).softmax(-1)
        said = torch.einsum("mnc,nc->mn", self.z, p)
        centred = self.z - said[..., None]
        return said @ self.share - self.labelled, torch.einsum("inc,jnc->ij", centred * (p * self.share[:, None]), centred)

    def moved(self, x: Tensor, step: Tensor, barrier: Tensor) -> Tensor:
        """Of the places a whole ``step`` and ever shorter ones ahead, the one where value - barrier x sum(log x) is least."""
        lengths = 8.0 ** -torch.arange(TRIALS, device=x.device, dtype=x.dtype)
        places = x + lengths[:, None] * step
        values = torch.einsum("tm,mnc->tnc", places, self.z).logsumexp(-1) @ self.share - places @ self.labelled
        merit = values - barrier * places.log().sum(-1)
        return places[merit.argmin(0, keepdim=True)][0]


def _newton(x: Tensor, s: Tensor, barrier: Tensor, gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of x and of the multipliers ``s`` of x >= 0 towards gradient = s + nu, x s = barrier, with sum x kept."""
    border = torch.ones_like(x)
    ridge = 1e-9 * curvature.diagonal().sum()  # networks that agree leave the curvature flat
    top = torch.cat([curvature + torch.diag(s / x + ridge), border[:, None]], 1)
    system = torch.cat([top, F.pad(border, (0, 1))[None]])
    step = torch.linalg.solve_ex(system, F.pad(barrier / x - gradient, (0, 1)))[0][:-1]
    return step, (barrier - s * step) / x - s


def _within(x: Tensor, step: Tensor) -> Tensor:
    """The share of ``step``, at most 1, that leaves ``x`` positive."""
    return 0.995 / (-step / x).amax().clamp(min=0.995)
