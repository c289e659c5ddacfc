"""Teacher assistants: a chain of ordinary distillations down to the student, each by a network of the next smaller size.

The published program averages KL over images and classes, so that its term is C times weaker than the paper's formula; that
is ``reduction='elementwise'``.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from ..recipe import FromPhase, Needs, Paper, Phase, numbered
from ..recipe.frozen import value
from ..types import Batch, Context, Outputs, Taught
from .base import Distiller
from .chain import ChainMethod, Learner, part_name, part_of


@value
class TAKD(ChainMethod):
    """teacher -> assistant -> assistant2 .. -> student: each learns by ``ce`` CE + ``kd`` KD from the one before, in a phase of its own.

    Every phase has the length and the rates of the one that stands in the recipe.
    """

    assistants: Annotated[int, Field(ge=1)] = 1  # roles assistant, assistant2, .., from large to small
    reduction: Literal["batch", "elementwise"] = "batch"
    learner: str | None = None  # the role that an expanded part trains
    kind: Literal["takd"] = "takd"

    paper: ClassVar[Paper] = Paper(
        title="Improved Knowledge Distillation via Teacher Assistant",
        authors="Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh",
        year=2020,
        venue="AAAI",
        section="3",
        formula="(1 - lambda) CE(s, y) + lambda T^2 KL(a || s), and the same for the assistant a from the teacher",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.learner is not None and self.learner not in self.chain[1:]:
            raise ValueError(
                f"learner={self.learner!r} is no link of this chain: take {', '.join(self.chain[1:])}, or none for all"
            )
        return self

    @property
    def chain(self) -> tuple[str, ...]:
        return ("teacher", *numbered("assistant", self.assistants), "student")

    def needs(self) -> Needs:
        if self.learner is None:
            return Needs(trained=self.chain[1:], frozen=("teacher",))
        return Needs(trained=(self.learner,), frozen=(self.chain[self.chain.index(self.learner) - 1],))

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None:
            return (phase,)
        parts = []
        for number, (teacher, learner) in enumerate(zip(self.chain, self.chain[1:], strict=False)):
            before = {teacher: FromPhase(part_name(phase, teacher), role=teacher)} if number else {}
            parts.append(part_of(phase, number, learner, dataclasses.replace(self, learner=learner), before))
        return tuple(parts)

    def build(self, context: Context) -> Distiller:
        return ChainLearner(self, context, self.needs().trained[-1])


class ChainLearner(Learner):
    method: TAKD

    def learned(self, outputs: Outputs, batch: Batch, taught: Taught) -> Tensor:
        learned = super().learned(outputs, batch, taught)
        return learned / self.student.classes if self.method.reduction == "elementwise" else learned
