"""Several frozen teachers: the mean of their KD terms, or the combination on which they agree best.

AEKD's weights are of a batch: the gradients of all terms in the student's logits are averaged over it, over the ranks too, so
that all ranks move by one combination. A micro-batch has weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..errors import RecipeError
from ..losses import aekd
from ..losses.logits import kd_kl
from ..recipe import Needs, Paper, numbered
from ..recipe.frozen import value
from ..tasks import Rows
from ..types import Batch, Context, Losses, Taught
from .base import Distiller, Method
from .terms import Positive, Weight


@value
class MultiKD(Method):
    """``ce`` CE(s, y) + ``kd`` sum_k w_k KD(s <- t_k). ``weights``: 'aver' is 1/K each, 'aekd' the shortest common gradient."""

    temperature: Positive = 4.0
    ce: Weight = 1.0
    kd: Weight = 1.0
    teachers: Annotated[int, Field(ge=2, le=aekd.MOST)] = 3  # roles teacher, teacher2, ..
    weights: Literal["aver", "aekd"] = "aver"
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.6  # aekd only: the most that one teacher weighs
    normalise_gradients: bool = False  # aekd only
    kind: Literal["multi_kd"] = "multi_kd"

    paper: ClassVar[Paper] = Paper(
        title="Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space",
        authors="Du, You, Li, Wu, Wang, Qian, Zhang",
        year=2020,
        venue="NeurIPS",
        section="3",
        formula="CE(s, y) + sum_k w_k KD(s <- t_k), w = 1/K or argmin |sum_k w_k grad KD_k|, 0 <= w_k <= 0.6",
        published=(
            "KD + AVER (SHAKE, poster): WRN-40-2 -> WRN-16-2 75.22, ResNet-110 -> ResNet-20 71.24, resnet32x4 -> resnet8x4 74.99",
            "KD + AEKD (same table, same pairs): 75.68, 71.36, 74.75",
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.weights == "aekd":
            try:
                aekd.check(self.teachers, self.tolerance)
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return self

    def needs(self) -> Needs:
        couples = "micro-batch" if self.weights == "aekd" else None
        return Needs(frozen=numbered("teacher", self.teachers), couples=couples)

    def build(self, context: Context) -> Distiller:
        return MultiDistiller(self, context)


class MultiDistiller(Distiller):
    def __init__(self, method: MultiKD, context: Context) -> None:
        super().__init__(context)
        self.method = method

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method, outputs = self.method, self.student(batch.images)
        rows = self.rows(outputs, batch, taught)
        terms = {role: rows.mean(kd_kl(rows.logits, said, method.temperature)) for role, said in rows.teacher.items()}
        shares = zip(terms, self.weights(rows), terms.values(), strict=True)
        learned = {f"kd<-{role}": method.kd * weight * term for role, weight, term in shares}
        return self.supervised(outputs, batch, method.ce) | learned

    def weights(self, rows: Rows) -> Sequence[float | Tensor]:
        """A number a teacher, in the order of ``rows``; on the device where it is of the batch."""
        method, teachers = self.method, rows.teacher.values()
        if method.weights == "aver":
            return [1 / len(teachers)] * len(teachers)
        means = [aekd.mean_gradient(rows.logits, said, method.temperature, rows.valid) for said in teachers]
        return aekd.aekd_weights(self.world.total(torch.stack(means)), method.tolerance, method.normalise_gradients).unbind()
