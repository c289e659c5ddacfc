"""FitNets: a regressor on one of the student's maps imitates a map of the teacher.

The benchmark trains it together with the labels, in one phase; the paper's first of two phases trains on the hint alone. The
regressor ends in a ReLU, which cannot reach the negative values of a wide residual network's stages (raw sums): the published
numbers were measured so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..errors import NetworkError
from ..losses.features import hint
from ..networks.adapters import Regressor
from ..recipe import Paper
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Taught
from .terms import Term, TermMethod, Weight


@value
class FitNets(TermMethod):
    """``ce`` CE + ``kd`` KD + ``weight`` mean (R(student's ``tap``) - teacher's ``teacher_tap``)^2, R trained.

    Stage-by-Stage's ImageNet runs use the weight 10 and the stage of 28 pixels.
    """

    weight: Weight = 100.0
    tap: str = "stage2"
    teacher_tap: str | None = None  # None: the same name
    regressor_relu: bool = True
    kind: Literal["fitnets"] = "fitnets"

    paper: ClassVar[Paper] = Paper(
        title="FitNets: Hints for Thin Deep Nets",
        authors="Romero, Ballas, Kahou, Chassang, Gatta, Bengio",
        year=2015,
        venue="ICLR",
        section="2.2",
        formula="CE(s, y) + 100 mean (R(f_s) - f_t)^2",
        published=(
            "WRN-40-2 -> WRN-16-2: 73.58 (SHAKE supplement, table 4)",
            "ResNet-32x4 -> ResNet-8x4: 73.50 (SHAKE supplement, table 4)",
            "VGG13 -> VGG8: 71.02 (SHAKE supplement, table 4)",
        ),
    )

    @property
    def taps(self) -> Mapping[str, tuple[str, ...]]:
        return {"student": (self.tap,), "teacher": (self.teacher_tap or self.tap,)}

    def term(self, context: Context) -> Term:
        return HintTerm(self, context)


class HintTerm(Term):
    def __init__(self, method: FitNets, context: Context) -> None:
        super().__init__()
        self.weight, self.task, self.world = method.weight, context.task, context.world
        self.tap, self.teacher_tap = method.tap, method.teacher_tap or method.tap
        student = context.networks["student"].shape(self.tap)
        self.regressor = Regressor(student, context.networks["teacher"].shape(self.teacher_tap), method.regressor_relu)

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        adapted, teacher = self.regressor(outputs.taps[self.tap]), taught["teacher"].taps[self.teacher_tap]
        if adapted.shape != teacher.shape:
            # The rule was asked at the networks' own image sizes; the data's may be another.
            raise NetworkError(
                f"the regressor makes {tuple(adapted.shape[1:])} of these images and the teacher's {self.teacher_tap!r} is"
                f" {tuple(teacher.shape[1:])}: name taps whose sizes agree, or are 2 to 1"
            )
        rows: Any = self.task.rows(outputs, batch, taught, self.world)
        return {"fitnets": self.weight * rows.mean(hint(adapted, teacher))}
