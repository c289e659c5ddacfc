"""DeiT's distillation token: a second head follows the teacher while the class head follows the labels.

The two heads never meet in the loss. The answer of the network is the mean of their logits, as the released program
computes it (the paper adds their probabilities).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..losses import deit
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Outputs, Taught
from .base import Distiller, Method, require_distillation_head


@value
class Deit(Method):
    """(1 - alpha) CE(class, q) + alpha D(distillation, teacher); D by ``hard``: the teacher's label or its distribution.

    The paper's constants are the defaults of each kind: alpha 0.5 for the label, alpha 0.1 and tau 3 for the distribution.
    """

    hard: bool = True
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None  # None: 0.5 hard, 0.1 soft
    tau: Annotated[float, Field(gt=0)] = 3.0  # soft only
    reduction: deit.Reduction = "batchmean"  # soft only; 'numel' is the released program's
    teacher_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # hard only
    kind: Literal["deit"] = "deit"

    paper: ClassVar[Paper] = Paper(
        title="Training data-efficient image transformers & distillation through attention",
        authors="Touvron, Cord, Douze, Massa, Sablayrolles, Jégou",
        year=2021,
        venue="ICML",
        section="4",
        formula="(1 - alpha) CE(class, q) + alpha CE(distillation, argmax t)",
    )

    @property
    def share(self) -> float:
        """alpha, or what the paper gives this kind."""
        if self.alpha is not None:
            return self.alpha
        return 0.5 if self.hard else 0.1

    def needs(self) -> Needs:
        return Needs(frozen=("teacher",), distillation_head=True)

    def build(self, context: Context) -> Distiller:
        require_distillation_head(context.networks["student"], self.kind)
        return DeitDistiller(self, context)


class DeitDistiller(Distiller):
    def __init__(self, method: Deit, context: Context) -> None:
        super().__init__(context)
        self.method = method

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        heads = self.student(batch.images).heads
        token = self.rows(Outputs(heads["distillation"]), batch, taught)
        teacher = token.teacher["teacher"]
        if self.method.hard:
            learned = deit.hard(token.logits, teacher, self.method.teacher_smoothing)
        else:
            learned = deit.soft(token.logits, teacher, self.method.tau, self.method.reduction)
        share = self.method.share
        labels = self.supervised(Outputs(heads["class"]), batch, 1 - share)
        return labels | {"distillation<-teacher": share * token.mean(learned)}

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        outputs = self.student(batch.images)
        return {"student": logits_of(outputs), "class": outputs.heads["class"], "distillation": outputs.heads["distillation"]}
