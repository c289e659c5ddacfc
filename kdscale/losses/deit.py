"""What DeiT's distillation token learns from its teacher: the label that the teacher would give, or its distribution.

Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021, section 4. The
soft form has two published reductions that differ by the factor C: the paper's formula averages over images
(``batchmean``), the released program over images and classes (``numel``), which leaves next to nothing of the term.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .logits import cross_entropy, kd_kl

Reduction = Literal["batchmean", "numel"]


def hard(distillation: Tensor, teacher: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the distillation head with the teacher's top class. [N,C] each; returns [N].

    ``smoothing`` smooths that class as a label is smoothed; the paper allows 0.1, the program has none.
    """
    return cross_entropy(distillation, teacher.argmax(-1), smoothing)


def soft(distillation: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "batchmean") -> Tensor:
    """T^2 KL(teacher || distillation head) a row, divided by C for ``numel``. [N,C] each; returns [N]."""
    rows = kd_kl(distillation, teacher, temperature)
    return rows / distillation.shape[-1] if reduction == "numel" else rows
