"""Knowledge distillation of logits, in the weighting of the CRD benchmark: a tenth of the labels, nine tenths of the teacher."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..losses.logits import kd_kl
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Taught
from .base import Distiller, Method

Weight = Annotated[float, Field(ge=0)]


@value
class KD(Method):
    """``ce`` CE(s, y) + ``kd`` T^2 KL(t || s) at ``temperature`` T. The ImageNet habit is 0.5, 0.5 and T = 1."""

    temperature: Annotated[float, Field(gt=0)] = 4.0
    ce: Weight = 0.1
    kd: Weight = 0.9
    kind: Literal["kd"] = "kd"

    paper: ClassVar[Paper] = Paper(
        title="Distilling the Knowledge in a Neural Network",
        authors="Hinton, Vinyals, Dean",
        year=2014,
        venue="NeurIPS Deep Learning Workshop",
        section="2",
        formula="0.1 CE(s, y) + 0.9 T^2 KL(softmax(t/T) || softmax(s/T))",
    )

    def needs(self) -> Needs:
        return Needs(frozen=("teacher",))

    def build(self, context: Context) -> Distiller:
        return KDDistiller(self, context)


class KDDistiller(Distiller):
    def __init__(self, method: KD, context: Context) -> None:
        super().__init__(context)
        self.method = method

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        outputs = self.student(batch.images)
        rows = self.rows(outputs, batch, taught)
        learned = kd_kl(rows.logits, rows.teacher["teacher"], self.method.temperature)
        return self.supervised(outputs, batch, self.method.ce) | {"kd": self.method.kd * rows.mean(learned)}
