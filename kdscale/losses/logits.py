"""Row losses of logits: cross-entropy with hard, smoothed and soft targets, and knowledge distillation.

The teacher's logits are not detached here: frozen networks have no graph, and some methods (a teacher that learns beside
its student) want the gradient through the target.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .precision import wide

IGNORED = -100
"""The label of a row that has none; its cross-entropy is 0."""


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log softmax(logits)[label] a row. ``logits`` [N,C], ``labels`` [N] int64; returns [N].

    ``smoothing`` e replaces the label by (1 - e) onehot + e / C (Szegedy et al., CVPR 2016).
    """
    return F.cross_entropy(wide(logits), labels, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c q_c log softmax(logits)_c a row. ``logits`` and ``targets`` q [N,C]; returns [N]."""
    return -(wide(targets) * F.log_softmax(wide(logits), dim=-1)).sum(-1)


def kd_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) a row: what the student learns from the teacher. [N,C] each; returns [N].

    T^2 keeps the gradient's size when T changes. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
    NeurIPS workshop 2014. The mean over rows is the published loss; a mean over elements would be C times smaller.
    """
    learner = F.log_softmax(wide(student) / temperature, dim=-1)
    target = F.log_softmax(wide(teacher) / temperature, dim=-1)
    return F.kl_div(learner, target, reduction="none", log_target=True).sum(-1) * temperature**2


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over classes of (student - teacher)^2 a row. [N,C] each; returns [N]."""
    return (wide(student) - wide(teacher)).square().mean(-1)
