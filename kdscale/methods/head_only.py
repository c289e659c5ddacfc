"""A new classifier on a trained network that stays as it is: how good are its features?"""

from __future__ import annotations

from typing import ClassVar, Literal

from ..recipe import Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Taught
from .base import Distiller, Method


@value
class HeadOnly(Method):
    """Cross-entropy over the classifier alone, which is drawn anew as its architecture draws it."""

    frozen_bn: Literal["eval", "train"] = "eval"  # batch norms of the features: at rest, or following the batch
    kind: Literal["head_only"] = "head_only"

    paper: ClassVar[Paper] = Paper(
        title="An Embarrassingly Simple Approach for Knowledge Distillation",
        authors="Gao, Shen, Li, Yan, Wan, Lin, Loy, Tang",
        year=2018,
        venue="arXiv:1812.01819",
        section="3, table 1",
        formula="CE(s, y) over the classifier alone",
        published=(
            "ImageNet, end to end / classifier alone: ResNet-34 73.55 / 73.53, ResNet-18 by KD 70.76 / 70.75 (table 1)",
        ),
    )

    def build(self, context: Context) -> Distiller:
        return HeadDistiller(context, self.frozen_bn)


class HeadDistiller(Distiller):
    """The student, of which only the classifiers are trained."""

    def __init__(self, context: Context, frozen_bn: Literal["eval", "train"] = "eval") -> None:
        super().__init__(context, frozen_bn)
        drawn = context.fresh("student", 0)
        self.student.requires_grad_(False)
        for name, head in self.student.heads.items():
            head.load_state_dict(drawn.heads[name].state_dict())
            head.requires_grad_(True)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        return self.supervised(self.student(batch.images), batch)
