"""The alpha-divergence in place of KD: by one alpha, or by whichever of two is worse for a sample.

The adaptive form trains a surrogate whose number means nothing; what the log shows is the divergence itself, and only the
gradient is the surrogate's.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..losses import alpha_divergence
from ..recipe import Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Taught
from .logit_terms import LogitTerm
from .terms import Positive, Term, TermMethod, Weight


@value
class AlphaDivergence(TermMethod):
    """CE(s, y) + ``weight`` T^2 D_alpha(t || s). ``alpha`` 1 is KL(t || s), 0 is KL(s || t), 1/2 is symmetric.

    ``alpha=None`` is the adaptive form: for each sample whichever of ``low`` and ``high`` diverges more, with the importance
    weights cut at ``clip``. Its authors also cut every element of the gradient to 1; here ``optimizer.clip`` bounds its norm.
    """

    temperature: Positive = 1.0
    weight: Weight = 1.0
    alpha: float | None = None
    low: float = -1.0  # adaptive only
    high: float = 1.0  # adaptive only
    clip: Annotated[float, Field(ge=1)] = 5.0  # adaptive only
    kind: Literal["alpha_divergence"] = "alpha_divergence"

    paper: ClassVar[Paper] = Paper(
        title="AlphaNet: Improved Training of Supernets with Alpha-Divergence",
        authors="Wang, Gong, Li, Chandra",
        year=2021,
        venue="ICML",
        section="3",
        formula="CE(s, y) + max(D_-1(t || s), D_1(t || s)), D_a(p || q) = (sum p^a q^(1-a) - 1) / (a (a - 1))",
        published=("within SHAKE (SHAKE supplement, table 6): ResNet-110 -> ResNet-32 74.92, WRN-40-2 -> WRN-16-2 77.17",),
    )

    def term(self, context: Context) -> Term:
        return AlphaTerm(self, context)


class AlphaTerm(LogitTerm):
    def __init__(self, method: AlphaDivergence, context: Context) -> None:
        super().__init__(context)
        self.method = method

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        rows = self.rows(outputs, batch, taught)
        learned = self.learned(rows.logits, rows.teacher["teacher"])
        return {"alpha": self.method.weight * rows.mean(learned)}

    def learned(self, student: Tensor, teacher: Tensor) -> Tensor:
        method = self.method
        if method.alpha is not None:
            return alpha_divergence.divergence(student, teacher, method.alpha, method.temperature)
        ends = (method.low, method.high, method.clip, method.temperature)
        trained = alpha_divergence.adaptive(student, teacher, *ends)
        return trained + (alpha_divergence.adaptive_value(student, teacher, *ends) - trained).detach()
