"""What a method adds to a student's ordinary objective, so that it can be added to another method's as well.

The CRD benchmark (Tian, Krishnan, Isola, ICLR 2020) writes every feature method as gamma CE + alpha KD + beta L with one L of
its own. That L is a :class:`Term`: it reads the answers of one forward of the student and what the teacher said, and owns
whatever else is trained. ``Shake(plus=(FitNets(),))`` and its like take the term and leave the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from ..errors import NetworkError
from ..losses.logits import kd_kl
from ..networks import Network
from ..recipe import Needs
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Progress, Taught
from .base import Distiller, Method

Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Term(nn.Module):
    """One addend: named losses, already weighted, of what both networks said."""

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        """``outputs``: of the student, with the taps that the method's value names."""
        raise NotImplementedError

    def before_step(self, progress: Progress) -> None:
        """Once an optimizer step, before it: ramps go into 0-dim buffers."""

    def after_step(self, progress: Progress) -> None:
        """Once an optimizer step, after it: banks are written here."""


@value
class TermMethod(Method):
    """``ce`` CE + ``kd`` KD at ``temperature`` + ``weight`` times the method's own term."""

    ce: Weight = 1.0
    kd: Weight = 0.0
    temperature: Positive = 4.0

    @property
    def taps(self) -> Mapping[str, tuple[str, ...]]:
        """Role ('student', 'teacher') -> taps that the term reads; 'stages' stands for all there are."""
        return {}

    def needs(self) -> Needs:
        return Needs(frozen=("teacher",), taps=self.taps)

    def term(self, context: Context) -> Term:
        """What this method adds. Raises NetworkError where the two networks cannot be compared so."""
        raise NotImplementedError

    def build(self, context: Context) -> Distiller:
        return TermDistiller(self, context)


class TermDistiller(Distiller):
    """The student, one term, and the weighted labels and teacher beside it."""

    def __init__(self, method: TermMethod, context: Context) -> None:
        super().__init__(context)
        self.method = method
        self.taps = student_taps(self.student, method)
        self.term = method.term(context)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        outputs = self.student(batch.images, taps=self.taps)
        losses = self.supervised(outputs, batch, self.method.ce)
        if self.method.kd:
            rows = self.rows(outputs, batch, taught)
            learned = kd_kl(rows.logits, rows.teacher["teacher"], self.method.temperature)
            losses["kd"] = self.method.kd * rows.mean(learned)
        terms: Losses = self.term(outputs, batch, taught)
        return losses | terms

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.term.before_step(progress)

    def after_step(self, progress: Progress) -> None:
        self.term.after_step(progress)


def student_taps(student: Network, *methods: TermMethod) -> tuple[str, ...]:
    """What the terms of ``methods`` read of the student's one forward."""
    return student.expanded(tuple(tap for method in methods for tap in method.taps.get("student", ())))


def paired_stages(context: Context, suffix: str = "") -> list[tuple[str, str]]:
    """(student's tap, teacher's tap) of each stage, last with last where one network has more (``suffix`` '.pre': before ReLU).

    Raises NetworkError where a network shows no such taps.
    """
    word = f"stages{suffix}"
    sides: list[tuple[Any, tuple[str, ...]]] = [
        (n, n.expanded((word,))) for n in (context.networks["student"], context.networks["teacher"])
    ]
    for network, taps in sides:
        if not taps:
            raise NetworkError(
                f"network {network.name!r} has no taps stage1{suffix} .. to compare: take a timm or CIFAR network"
            )
    (_, mine), (_, theirs) = sides
    count = min(len(mine), len(theirs))
    return list(zip(mine[-count:], theirs[-count:], strict=True))
