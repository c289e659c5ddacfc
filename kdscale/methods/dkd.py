"""Decoupled knowledge distillation: the teacher's answer on the label and its answer on all else, weighted apart."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, ones

from ..losses.dkd import decoupled, decoupled_mixed
from ..recipe import Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Progress, Taught
from .logit_terms import LogitTerm, linear_ramp
from .terms import Term, TermMethod, Weight


@value
class DKD(TermMethod):
    """CE(s, y) + r [``alpha`` T^2 KL of the label against the rest + ``beta`` T^2 KL among the rest], r rising to 1.

    ``beta`` is the paper's by pair: 8 where the teacher is resnet32x4 or ResNet50 and for WRN-40-2 to ShuffleNetV1, 6 for the
    VGGs and WRNs, 2 for the small ResNets; on ImageNet T = 1, one epoch of ramp and 0.5 (ResNets) or 2 (MobileNet).
    """

    alpha: Weight = 1.0  # of the label against the rest
    beta: Weight = 8.0  # of the rest
    warmup_epochs: Weight = 20.0
    kind: Literal["dkd"] = "dkd"

    paper: ClassVar[Paper] = Paper(
        title="Decoupled Knowledge Distillation",
        authors="Zhao, Cui, Song, Qiu, Liang",
        year=2022,
        venue="CVPR",
        section="3",
        formula="CE(s, y) + min(epoch/20, 1) [alpha T^2 KL(b_t || b_s) + beta T^2 KL(t || s without y)]",
    )

    def term(self, context: Context) -> Term:
        return DecoupledTerm(self, context)


class DecoupledTerm(LogitTerm):
    ramp: Tensor  # [] float

    def __init__(self, method: DKD, context: Context) -> None:
        super().__init__(context)
        self.method = method
        self.register_buffer("ramp", ones(()), persistent=False)

    def before_step(self, progress: Progress) -> None:
        self.ramp.fill_(linear_ramp(progress, self.method.warmup_epochs))

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        method, rows = self.method, self.rows(outputs, batch, taught)
        teacher = rows.teacher["teacher"]
        if batch.targets is None:
            label, rest = decoupled(rows.logits, teacher, rows.labels, method.temperature)
        else:
            label, rest = decoupled_mixed(rows.logits, teacher, batch.targets, method.temperature)
        return {
            "label<-teacher": self.ramp * method.alpha * rows.mean(label),
            "rest<-teacher": self.ramp * method.beta * rows.mean(rest),
        }
