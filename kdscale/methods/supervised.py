"""The student alone with its labels: the baseline of every table, and how a teacher is trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..recipe import Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Taught
from .base import Distiller, Method


@value
class Supervised(Method):
    """Cross-entropy with the labels, or with what mixing and smoothing made of them."""

    kind: Literal["supervised"] = "supervised"

    paper: ClassVar[Paper] = Paper(
        title="Rethinking the Inception Architecture for Computer Vision",
        authors="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna",
        year=2016,
        venue="CVPR",
        section="7",
        formula="CE(s, q), q the label, smoothed or mixed",
    )

    def build(self, context: Context) -> Distiller:
        return SupervisedDistiller(context)


class SupervisedDistiller(Distiller):
    def losses(self, batch: Batch, taught: Taught) -> Losses:
        return self.supervised(self.student(batch.images), batch)
