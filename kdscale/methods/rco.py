"""Route-constrained optimization: the student learns from the stages of its teacher's own training, the easiest first.

The roles teacher, teacher2, .. are the anchors in the order of the teacher's training, the last its final weights. A recipe
that trains the teacher itself says ``Phase(Supervised(), epochs=240, name="teacher", networks={"student": Model(...)})`` and,
for this phase, ``networks={"teacher": FromPhase("teacher", at=60), .., "teacher4": FromPhase("teacher")}``: naming the epochs
is what makes the earlier phase keep them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..recipe import FromPhase, Needs, Paper, Phase, numbered
from ..recipe.frozen import value
from ..types import Context, Progress
from .base import Distiller
from .chain import ChainMethod, Learner, part_of


@value
class RCO(ChainMethod):
    """``ce`` CE + ``kd`` KD from one anchor at a time, each for an equal share of the epochs.

    ``cycles``: each anchor has a phase of its own with the whole length and a fresh schedule, and the student goes on from phase
    to phase (RCO-EEI-4 of SFTN's table: 4 x 240 epochs).
    """

    anchors: Annotated[int, Field(ge=1)] = 4
    cycles: bool = False
    anchor: Annotated[int, Field(ge=1)] | None = None  # that speaks in an expanded part, from 1
    kind: Literal["rco"] = "rco"

    paper: ClassVar[Paper] = Paper(
        title="Knowledge Distillation via Route Constrained Optimization",
        authors="Jin, Peng, Wu, Liu, Liu, Liang, Yan, Hu",
        year=2019,
        venue="ICCV",
        section="3",
        formula="CE(s, y) + KD(s <- t_k), t_k the teacher after k/n of its training, in epochs (k-1)/n .. k/n of the student's",
        published=(
            "one stage (SFTN, table 4): WRN-40-2 -> WRN-16-2 75.36, WRN-40-1 74.29; resnet32x4 -> resnet8x4 74.06,"
            " ShuffleNetV1 76.62, ShuffleNetV2 77.40; ResNet50 -> vgg8 74.30",
            "4 x 240 epochs (same table, same pairs): 75.69, 74.87, 73.73, 76.97, 76.89, 74.24",
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.anchor is not None and self.anchor > self.anchors:
            raise ValueError(f"there is no anchor {self.anchor} of {self.anchors}: set anchors higher")
        return self

    def needs(self) -> Needs:
        route = numbered("teacher", self.anchors)
        return Needs(frozen=route if self.anchor is None else route[self.anchor - 1 : self.anchor])

    def asks(self, progress: Progress) -> tuple[str, ...]:
        route = self.needs().frozen
        return (route[min(math.floor(progress.epoch * len(route) / progress.epochs), len(route) - 1)],)

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None or not self.cycles:
            return (phase,)
        parts: list[Phase] = []
        for number in range(self.anchors):
            before = {"student": FromPhase(parts[-1].name)} if parts else {}
            parts.append(part_of(phase, number, f"anchor{number + 1}", dataclasses.replace(self, anchor=number + 1), before))
        return tuple(parts)

    def build(self, context: Context) -> Distiller:
        return Learner(self, context)
