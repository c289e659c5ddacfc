"""Offline distillation with a way back (KD with a dagger in SHAKE's tables): a trained teacher is fine-tuned while it teaches.

The role teacher starts from its weights, in train mode, and its rate is the student's; ``SGD(..., parts={"teacher":
Part(lr=0.1)})`` in the recipe gives it a tenth.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..errors import NetworkError, RecipeError
from ..losses.logits import kd_kl
from ..networks import Network
from ..recipe import FromPhase, Needs, Paper, Phase
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Taught
from .base import Distiller
from .chain import ChainMethod, Learner, cut_at, length_of, part_of
from .terms import Weight


@value
class ReverseKD(ChainMethod):
    """``ce`` CE + ``kd`` KD of the student from the teacher and of the teacher from the student, the target detached in each.

    ``update``: 'all' of the teacher, its 'head' alone (the rest stays in eval mode and has no gradient), or all in the 'first'
    ``first_epochs`` epochs; it is frozen then, in a second phase on the same rate curve. ``teacher_labels=False`` leaves the
    teacher's own CE out.
    """

    ce: Weight = 1.0
    kd: Weight = 1.0
    update: Literal["all", "head", "first"] = "all"
    first_epochs: Annotated[float, Field(gt=0)] = 60.0  # update='first' only
    teacher_labels: bool = True
    frozen: bool = False  # the expanded part in which the teacher learns no more
    kind: Literal["reverse_kd"] = "reverse_kd"

    paper: ClassVar[Paper] = Paper(
        title="Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer",
        authors="Li, Jin",
        year=2022,
        venue="NeurIPS",
        section="supplement, table 1",
        formula="CE(s, y) + KD(s <- sg t) + CE(t, y) + KD(t <- sg s), t from its trained weights",
        published=(
            "all (SHAKE supplement, table 1): ResNet-110 -> ResNet-20 71.76, WRN-40-2 -> WRN-16-2 75.58, vgg13 -> vgg8 73.65",
            "head alone (same table, same pairs): 71.05, 75.08, 73.22; first 60 epochs: 71.13, 75.17, 73.45",
        ),
    )

    def needs(self) -> Needs:
        return Needs(frozen=("teacher",)) if self.frozen else Needs(trained=("student", "teacher"))

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None or self.update != "first":
            return (phase,)
        epochs = length_of(phase, "its teacher learns in the first epochs of it")
        if self.first_epochs >= epochs:
            raise RecipeError(
                f"phase {phase.name!r} has {epochs:g} epochs, and its teacher learns in the first {self.first_epochs:g}:"
                " set first_epochs lower, or update=all"
            )
        rates, rest = cut_at(phase.schedule, self.first_epochs, epochs)
        both = part_of(phase, 0, "both", self, epochs=self.first_epochs, schedule=rates)
        networks = {role: FromPhase(both.name, role=role) for role in ("student", "teacher")}
        alone = {name: part for name, part in phase.optimizer.parts.items() if name != "teacher"}
        optimizer = dataclasses.replace(phase.optimizer, parts=alone)
        after = {"epochs": epochs - self.first_epochs, "schedule": rest, "optimizer": optimizer}
        return both, part_of(phase, 1, "student", dataclasses.replace(self, frozen=True), networks, **after)

    def build(self, context: Context) -> Distiller:
        return Learner(self, context) if self.frozen else ReverseDistiller(self, context)


class ReverseDistiller(Distiller):
    """Student and teacher, each the other's target."""

    def __init__(self, method: ReverseKD, context: Context) -> None:
        super().__init__(context)
        self.method = method
        self.teacher: Network = context.networks["teacher"]
        if method.update == "head":
            keep_head(self.teacher)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method, student, teacher = self.method, self.student(batch.images), self.teacher(batch.images)
        rows = self.rows(student, batch, {"teacher": teacher})
        mine, theirs = rows.logits, rows.teacher["teacher"]
        losses = self.supervised(student, batch, method.ce)
        if method.teacher_labels:
            losses |= {f"teacher<-{name}": loss for name, loss in self.supervised(teacher, batch, method.ce).items()}
        return losses | {
            "student<-teacher": method.kd * rows.mean(kd_kl(mine, theirs.detach(), method.temperature)),
            "teacher<-student": method.kd * rows.mean(kd_kl(theirs, mine.detach(), method.temperature)),
        }

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return {"student": logits_of(self.student(batch.images)), "teacher": logits_of(self.teacher(batch.images))}


def keep_head(network: Network) -> None:
    """Freezes all but the classifiers. Raises NetworkError where these have no weights."""
    network.requires_grad_(False)
    for head in network.heads.values():
        head.requires_grad_(True)
    if not any(p.requires_grad for p in network.parameters()):
        raise NetworkError(f"update='head' trains the classifier of {network.name!r}, which has none: take update='all'")
