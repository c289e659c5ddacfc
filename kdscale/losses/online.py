"""What networks that learn together learn from one another: DML, ONE and OKDDip. No target is detached here unless it is said.

Zhang et al., "Deep Mutual Learning", CVPR 2018; Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble",
NeurIPS 2018; Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020. The published programs of the last
two add 1e-7 to the target's probabilities and do not normalise it again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .logits import kd_kl
from .precision import wide

EPSILON = 1e-7


def mutual(learner: Tensor, others: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean over ``others``, detached, of T^2 KL(other || learner) a row. [N,C] each; returns [N]."""
    return torch.stack([kd_kl(learner, other.detach(), temperature) for other in others]).mean(0)


def softened_kl(learner: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(target/T) + 1e-7 || softmax(learner/T)) a row. Logits [...,N,C] each; returns [...,N]."""
    wanted = F.softmax(wide(target) / temperature, dim=-1) + EPSILON
    return F.kl_div(F.log_softmax(wide(learner) / temperature, dim=-1), wanted, reduction="none").sum(-1) * temperature**2


def blended(scores: Tensor, logits: Tensor) -> Tensor:
    """Sums of ``logits`` [M,N,C] of M networks, weighted in each row by the softmax of ``scores`` [...,N,M]; [...,N,C]."""
    with torch.autocast(logits.device.type, enabled=False):  # it would round logits to bf16 before they are compared
        return torch.einsum("...nm,mnc->...nc", wide(scores).softmax(-1), wide(logits))


def affinities(queries: Tensor, keys: Tensor) -> Tensor:
    """Inner products, unscaled, of what each of M peers asks with what each of them, itself too, has to offer.

    ``queries``, ``keys``: [M,N,D]; returns scores [M,N,M] for :func:`blended`, whose last axis is who is listened to.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return torch.einsum("and,bnd->anb", wide(queries), wide(keys))
