"""Attention transfer: each stage of the student is large where the teacher's is. Nothing but the student is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from ..losses.features import attention_transfer
from ..recipe import Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Taught
from .terms import Term, TermMethod, Weight, paired_stages


@value
class AT(TermMethod):
    """``ce`` CE + ``kd`` KD + ``weight`` sum over stages of mean (A(f_s) - A(f_t))^2, A the normalised mean square of channels."""

    weight: Weight = 1000.0
    kind: Literal["at"] = "at"

    paper: ClassVar[Paper] = Paper(
        title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via"
        " Attention Transfer",
        authors="Zagoruyko, Komodakis",
        year=2017,
        venue="ICLR",
        section="3.1",
        formula="CE(s, y) + 1000 sum_i mean (A(f_s,i) - A(f_t,i))^2, A(f) = unit(mean_c f^2)",
        published=(
            "WRN-40-2 -> WRN-16-2: 74.08 (SHAKE supplement, table 4)",
            "ResNet-32x4 -> ResNet-8x4: 73.44 (SHAKE supplement, table 4)",
            "VGG13 -> VGG8: 71.43 (SHAKE supplement, table 4)",
        ),
    )

    @property
    def taps(self) -> Mapping[str, tuple[str, ...]]:
        return {"student": ("stages",), "teacher": ("stages",)}

    def term(self, context: Context) -> Term:
        return AttentionTerm(self, context)


class AttentionTerm(Term):
    def __init__(self, method: AT, context: Context) -> None:
        super().__init__()
        self.weight, self.task, self.world = method.weight, context.task, context.world
        self.pairs = paired_stages(context)

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        teacher = taught["teacher"]
        stages = [attention_transfer(outputs.taps[mine], teacher.taps[theirs]) for mine, theirs in self.pairs]
        rows: Any = self.task.rows(outputs, batch, taught, self.world)
        return {"at": self.weight * rows.mean(torch.stack(stages).sum(0))}
