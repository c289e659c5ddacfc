"""Early-stopped distillation: a large teacher teaches better when its own training, or its teaching, ends early.

A teacher that some other run stopped early needs no method of its own: KD with ``FromPhase(..., at=35)``, or with its file.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor, full

from ..errors import RecipeError
from ..recipe import FromPhase, Needs, Paper, Phase
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Progress, Taught
from .base import Distiller
from .chain import ChainMethod, LabelLearner, Learner, compressed, cut_short, length_of, part_of
from .terms import Positive


@value
class ESKD(ChainMethod):
    """KD from a teacher that is stopped after ``at`` epochs, or for which the student stops to listen after ``at`` epochs.

    ``stop='teacher'``: a phase trains the role teacher with labels for ``at`` epochs and the phase's own optimizer, then the
    student learns from it for the whole length. ``compress``: the teacher's rates fall as they would in a whole run, within
    ``at`` epochs; else its run is cut off at their height. ``stop='distillation'``: the teacher is given; after ``at`` epochs
    it is not run, and the student goes on with the labels in full weight.
    """

    stop: Literal["teacher", "distillation"] = "teacher"
    at: Positive = 60.0  # epochs; a quarter of 240, as the paper's 50 of 200
    compress: bool = True
    learner: Literal["teacher", "student"] | None = None  # that an expanded part trains
    kind: Literal["eskd"] = "eskd"

    paper: ClassVar[Paper] = Paper(
        title="On the Efficacy of Knowledge Distillation",
        authors="Cho, Hariharan",
        year=2019,
        venue="ICCV",
        section="4",
        formula="0.1 CE(s, y) + 0.9 KD(s <- t), t trained for a fraction of its epochs",
        published=("ImageNet, ResNet-34 -> ResNet-18: 70.89 / 90.06 (SHAKE, poster)",),
    )

    @property
    def whole(self) -> bool:
        """Whether this value stands for both phases."""
        return self.stop == "teacher" and self.learner is None

    def needs(self) -> Needs:
        if self.learner == "teacher":
            return Needs(trained=("teacher",))
        return Needs(trained=("student", "teacher")) if self.whole else Needs(frozen=("teacher",))

    def asks(self, progress: Progress) -> tuple[str, ...]:
        return self.needs().frozen if self.teaches(progress) else ()

    def teaches(self, progress: Progress) -> bool:
        return self.stop == "teacher" or progress.epoch < self.at

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None:
            return (phase,)
        if self.stop == "distillation":
            self.check_end(phase)
            return (phase,)
        epochs = length_of(phase, "an early-stopped teacher has a share of it")
        schedule = compressed(phase.schedule, self.at / epochs) if self.compress else cut_short(phase.schedule, epochs)
        teacher = dataclasses.replace(self, learner="teacher")
        first = part_of(phase, 0, "teacher", teacher, epochs=self.at, schedule=schedule)
        stopped = {"teacher": FromPhase(first.name, role="teacher")}
        return first, part_of(phase, 1, "student", dataclasses.replace(self, learner="student"), stopped)

    def check_end(self, phase: Phase) -> None:
        epochs = length_of(phase, "distillation stops after an epoch of it")
        if self.at >= epochs:
            raise RecipeError(
                f"phase {phase.name!r} has {epochs:g} epochs, and its teacher stops after at={self.at:g}: set at lower"
            )

    def build(self, context: Context) -> Distiller:
        if self.learner == "teacher":
            # A teacher that came with weights is stopped early from its beginning, too.
            context.networks["teacher"].body.load_state_dict(context.fresh("teacher", 0).body.state_dict())
            return LabelLearner(context, "teacher")
        return StoppedLearner(self, context) if self.stop == "distillation" else Learner(self, context)


class StoppedLearner(Learner):
    """A student whose teacher falls silent."""

    method: ESKD
    labels: Tensor  # [] float: weight of CE

    def __init__(self, method: ESKD, context: Context) -> None:
        super().__init__(method, context)
        self.register_buffer("labels", full((), method.ce), persistent=False)

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.labels.fill_(self.method.ce if self.method.teaches(progress) else 1.0)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        outputs = self.student(batch.images)
        losses = {name: self.labels * loss for name, loss in self.supervised(outputs, batch).items()}
        if taught:
            return losses | {"kd": self.method.kd * self.learned(outputs, batch, taught)}
        return losses | {"kd": self.labels.new_zeros(())}
