"""What a SHAKE distiller minimises wherever its shadows are: the student's labels, and what all say to one another.

Of K teachers each has a shadow that follows it alone, and shadows do not hear one another; or one shadow follows them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, ones

from ...losses import aekd, shake
from ...recipe.method import kind_of
from ...tasks import Rows, logits_of
from ...types import Batch, Context, Losses, Outputs, Progress, Taught
from ..base import Distiller
from ..terms import Term, student_taps

if TYPE_CHECKING:
    from .value import Shake

Logits = dict[str, Tensor]
"""[N,C] by name of a shadow or role of a teacher."""


class ShakeDistiller(Distiller):
    """The names of the shadows, the ramp, the terms, and whatever ``plus`` adds. A subclass says where the shadows are."""

    ramp: Tensor  # [] float: factor on all terms but the labels'
    heads: ClassVar[Literal["each", "one"]] = "each"  # where the recipe does not say

    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(context)
        self.method = method
        count = 1 if (method.heads or self.heads) == "one" else method.teachers
        self.shadows = tuple(f"shadow{number}" for number in range(1, count + 1)) if count > 1 else ("shadow",)
        self.added = tuple(kind_of(other) for other in method.plus)
        self.added_taps = student_taps(self.student, *method.plus) if method.plus else ()  # type: ignore[arg-type]
        for kind, other in zip(self.added, method.plus, strict=True):
            self.add_module(kind, other.term(context))  # type: ignore[attr-defined]
        self.register_buffer("ramp", ones(()), persistent=False)

    def answers(self, batch: Batch) -> tuple[Outputs, Logits]:
        """The student's outputs, with the taps that ``plus`` asks for, and what the shadows say."""
        raise NotImplementedError

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        outputs, shadows = self.answers(batch)
        return self.objective(outputs, shadows, batch, taught)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        outputs, shadows = self.answers(batch)
        return {"student": logits_of(outputs)} | shadows

    def objective(self, outputs: Outputs, shadows: Logits, batch: Batch, taught: Taught) -> Losses:
        rows = self.rows(outputs, batch, taught)
        student = self.compared(rows.logits)
        heard = {name: self.compared(z) for name, z in shadows.items()}
        teachers = {role: self.compared(rows.teacher[role]) for role in self.method.roles}
        losses = self.supervised(Outputs(student), batch)
        learned = self.exchanged(rows, student, heard, teachers)
        if self.method.labels:
            for (name, shadow), weight in zip(heard.items(), self.alike(len(heard)), strict=True):
                labelled = self.supervised(Outputs(shadow), batch)
                learned |= {f"{name}<-{label}": weight * loss for label, loss in labelled.items()}
        return losses | self.ramped(learned | self.added_losses(outputs, batch, taught))

    def exchanged(self, rows: Rows, student: Tensor, shadows: Logits, teachers: Logits) -> Losses:
        """The mutual terms of the student with each shadow, and what ties the shadows to the teachers."""
        method = self.method
        to_student = self.weighed(rows, student, list(shadows.values()), method.temperature)
        to_shadow = to_student if method.weights_on == "all" else self.alike(len(shadows))
        learned: Losses = {}
        for (name, shadow), there, back in zip(shadows.items(), to_student, to_shadow, strict=True):
            terms = shake.mutual(student, shadow, method.temperature, method.divergence)
            learned[f"student<-{name}"] = method.weight * there * rows.mean(terms["student<-shadow"])
            learned[f"{name}<-student"] = method.weight * back * rows.mean(terms["shadow<-student"])
        return learned | self.tied(rows, shadows, teachers, to_shadow)

    def tied(self, rows: Rows, shadows: Logits, teachers: Logits, weights: list[Tensor | float]) -> Losses:
        """Each shadow to its teacher with ``weights``, or the one shadow to all teachers with weights of their own."""
        pairs = list(shadows.items())
        if len(pairs) < len(teachers):
            weights = self.weighed(rows, pairs[0][1], list(teachers.values()), self.softness)
            pairs *= len(teachers)
        return {
            f"{name}<-{role}": weight * rows.mean(self.followed(shadow, teacher))
            for (name, shadow), (role, teacher), weight in zip(pairs, teachers.items(), weights, strict=True)
        }

    @property
    def softness(self) -> float:
        """The temperature at which a shadow follows its teacher."""
        return self.method.ce_temperature if self.method.signal == "ce" else self.method.temperature

    def followed(self, shadow: Tensor, teacher: Tensor) -> Tensor:
        """What ties a shadow to a teacher, [N]."""
        return shake.proxy(shadow, teacher, self.method.signal, self.softness, self.method.divergence)

    def alike(self, count: int) -> list[Tensor | float]:
        """Equal weights of ``count`` terms of one sort."""
        return [1 / count if self.method.teacher_reduction == "mean" else 1.0] * count

    def weighed(self, rows: Rows, learner: Tensor, targets: Sequence[Tensor], temperature: float) -> list[Tensor | float]:
        """Weights of the terms KD(learner <- target), of the same sum as :meth:`alike`'s; AEKD's are the whole batch's."""
        method, count = self.method, len(targets)
        if method.weights == "aver" or count == 1:
            return self.alike(count)
        means = torch.stack([aekd.mean_gradient(learner, target, temperature, rows.valid) for target in targets])
        weights = aekd.aekd_weights(self.world.total(means), method.tolerance, method.normalise_gradients)
        total = 1.0 if method.teacher_reduction == "mean" else float(count)
        return list((total * weights).unbind())

    def compared(self, logits: Tensor) -> Tensor:
        """The logits as the losses see them; those of the predictions stay raw."""
        scale = self.method.scale
        return logits if scale is None else shake.normalised(logits, scale)

    def ramped(self, losses: Losses) -> Losses:
        return {name: self.ramp * loss for name, loss in losses.items()}

    def terms(self) -> Mapping[str, Term]:
        """What ``plus`` added, by kind."""
        return {kind: self.get_submodule(kind) for kind in self.added}  # type: ignore[misc]

    def added_losses(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        losses: Losses = {}
        for term in self.terms().values():
            losses |= term(outputs, batch, taught)
        return losses

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        if self.method.warmup_epochs:
            self.ramp.fill_(min((math.floor(progress.epoch) + 1) / self.method.warmup_epochs, 1.0))
        for term in self.terms().values():
            term.before_step(progress)

    def after_step(self, progress: Progress) -> None:
        super().after_step(progress)
        for term in self.terms().values():
            term.after_step(progress)
