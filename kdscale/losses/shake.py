"""Shadow knowledge distillation: a small head follows the frozen teacher and trades knowledge with the student both ways.

Li and Jin, "Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer", NeurIPS 2022. In both mutual
terms the other side is detached, here and not by the caller: a target that learns drifts towards the uniform distribution.
The published program compares logits that a layer normalisation has rescaled; the paper has no such step. Its supplement
adds AlphaNet's divergence, for which no temperature is given: it is taken at 1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .alpha_divergence import adaptive, adaptive_value
from .logits import kd_kl, soft_cross_entropy, squared_error
from .precision import wide

Divergence = Literal["kl", "alpha"]
ProxySignal = Literal["kl", "ce", "l2"]


def normalised(logits: Tensor, scale: float) -> Tensor:
    """Each row of ``logits`` [N,C] with mean 0 and standard deviation ``scale``, as the published program compares them."""
    return scale * F.layer_norm(wide(logits), logits.shape[-1:], eps=1e-7)


def learned(learner: Tensor, target: Tensor, temperature: float, divergence: Divergence = "kl") -> Tensor:
    """KD(learner <- target) a row. Logits [N,C] each; returns [N].

    ``alpha``: the adaptive divergence of -1 and 1 without temperature. Its value is the divergence's own and can be read; its
    gradient is the clipped surrogate's.
    """
    if divergence == "kl":
        return kd_kl(learner, target, temperature)
    surrogate = adaptive(learner, target)
    return surrogate + (adaptive_value(learner, target) - surrogate).detach()


def mutual(student: Tensor, shadow: Tensor, temperature: float, divergence: Divergence = "kl") -> dict[str, Tensor]:
    """Rows [N] of KD(student <- shadow) and KD(shadow <- student), each with a detached target. Logits [N,C] each."""
    return {
        "student<-shadow": learned(student, shadow.detach(), temperature, divergence),
        "shadow<-student": learned(shadow, student.detach(), temperature, divergence),
    }


def proxy(shadow: Tensor, teacher: Tensor, signal: ProxySignal, temperature: float, divergence: Divergence = "kl") -> Tensor:
    """What ties the shadow to the teacher, [N]. Logits [N,C] each.

    ``kl``: KD at ``temperature``, or what ``divergence`` puts in its place. ``ce``: T^2 times the cross-entropy with the
    teacher's distribution, whose gradient is that of ``kl`` at the same temperature. ``l2``: mean over classes of the squared
    difference, without temperature.
    """
    if signal == "kl":
        return learned(shadow, teacher, temperature, divergence)
    if signal == "l2":
        return squared_error(shadow, teacher)
    target = F.softmax(wide(teacher) / temperature, dim=-1)
    return soft_cross_entropy(wide(shadow) / temperature, target) * temperature**2
