"""What methods share that are a row of ordinary distillations: the learner of one, its place in the row, and its rates.

Each part of such a row is a phase of its own with the whole schedule, unless one curve runs on over two of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import RecipeError
from ..losses.logits import kd_kl
from ..recipe import Constant, Cosine, FromPhase, Model, MultiStep, Phase, Plateau
from ..recipe.frozen import value
from ..recipe.optim import Schedule
from ..types import Batch, Context, Losses, Outputs, Taught
from .base import Distiller, Method
from .terms import Positive, Weight


@value
class ChainMethod(Method):
    """``ce`` CE(s, y) + ``kd`` T^2 KL(t || s) in every part; 0.1 and 0.9 at T = 4 is KD's weighting in the CRD benchmark."""

    temperature: Positive = 4.0
    ce: Weight = 0.1
    kd: Weight = 0.9


class Learner(Distiller):
    """The network in one trained role, its labels, and the one frozen network that speaks."""

    def __init__(self, method: ChainMethod, context: Context, role: str = "student") -> None:
        super().__init__(context, student=role)
        self.method = method

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        outputs = self.student(batch.images)
        return self.supervised(outputs, batch, self.method.ce) | {"kd": self.method.kd * self.learned(outputs, batch, taught)}

    def learned(self, outputs: Outputs, batch: Batch, taught: Taught) -> Tensor:
        rows = self.rows(outputs, batch, taught)
        (teacher,) = rows.teacher.values()
        return rows.mean(kd_kl(rows.logits, teacher, self.method.temperature))


class LabelLearner(Distiller):
    """The network in one trained role with its labels alone, as a teacher or assistant is made."""

    def __init__(self, context: Context, role: str) -> None:
        super().__init__(context, student=role)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        return self.supervised(self.student(batch.images), batch)


def part_of(
    phase: Phase,
    number: int,
    name: str,
    method: Method,
    networks: Mapping[str, Model | FromPhase] | None = None,
    **changes: Any,
) -> Phase:
    """Part ``number`` of an expanded phase. What the phase carries from the one before it goes to the first part."""
    carry = phase.carry if number == 0 else ()
    own: dict[str, Any] = {"method": method, "name": part_name(phase, name), "part": number, "carry": carry}
    return dataclasses.replace(phase, **own, networks={**phase.networks, **(networks or {})}, **changes)


def part_name(phase: Phase, name: str) -> str:
    return f"{phase.name}-{name}"


def length_of(phase: Phase, reason: str) -> float:
    """Epochs of a phase. Raises RecipeError, with ``reason``, for one whose length is given in steps."""
    if phase.epochs is None:
        raise RecipeError(f"phase {phase.name!r} has steps={phase.steps}, and {reason}: give its length in epochs")
    return phase.epochs


def cut_at(schedule: Schedule, epochs: float, whole: float) -> tuple[Schedule, Schedule]:
    """The rates of the first ``epochs`` epochs and of what follows, of a phase that had ``whole`` epochs.

    Raises RecipeError for a schedule that waits for a plateau, and for a cut within the warm-up.
    """
    first = cut_short(schedule, whole)
    if isinstance(first, Plateau):
        raise RecipeError("a plateau's rates cannot run on over two phases: take schedule.kind=multistep, cosine or constant")
    if schedule.warmup > epochs:
        raise RecipeError(
            f"a phase of {epochs:g} epochs ends within its warm-up of {schedule.warmup:g}: set schedule.warmup lower"
        )
    if isinstance(first, Constant):
        return first, dataclasses.replace(first, warmup=0.0)
    return first, dataclasses.replace(first, offset=first.offset + epochs, warmup=0.0)


def cut_short(schedule: Schedule, whole: float) -> Schedule:
    """The rates that a phase of ``whole`` epochs has, for one that ends before."""
    if isinstance(schedule, Cosine) and schedule.total is None:
        return dataclasses.replace(schedule, total=whole)
    return schedule


def compressed(schedule: Schedule, share: float) -> Schedule:
    """The same curve in ``share`` of its epochs; a plateau, which finds its own, stays."""
    if isinstance(schedule, MultiStep):
        milestones = tuple(share * milestone for milestone in schedule.milestones)
        return dataclasses.replace(
            schedule, milestones=milestones, offset=share * schedule.offset, warmup=share * schedule.warmup
        )
    if isinstance(schedule, Cosine):
        total = None if schedule.total is None else share * schedule.total
        return dataclasses.replace(schedule, total=total, offset=share * schedule.offset, warmup=share * schedule.warmup)
    return dataclasses.replace(schedule, warmup=share * schedule.warmup)
