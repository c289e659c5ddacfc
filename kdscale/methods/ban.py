"""Born-again networks: each generation is drawn afresh and learns from the one before, at temperature 1."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..recipe import FromPhase, Needs, Paper, Phase, numbered
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Progress, Taught
from .base import Distiller
from .chain import ChainMethod, Learner, part_of
from .terms import Positive, Weight


@value
class BAN(ChainMethod):
    """CE(s, y) + KD(s <- the generation before), T = 1; the first generation's is the role teacher. A phase a generation.

    ``labels=False`` leaves the labels out, as the best rows of the paper do. ``ensemble``: the last generation also measures
    the mean of all generations' probabilities, for which it holds the earlier ones; the teacher is not among them.
    """

    temperature: Positive = 1.0
    ce: Weight = 1.0
    kd: Weight = 1.0
    generations: Annotated[int, Field(ge=1)] = 3
    labels: bool = True
    ensemble: bool = False
    generation: Annotated[int, Field(ge=1)] | None = None  # of an expanded part, from 1
    kind: Literal["ban"] = "ban"

    paper: ClassVar[Paper] = Paper(
        title="Born-Again Neural Networks",
        authors="Furlanello, Lipton, Tschannen, Itti, Anandkumar",
        year=2018,
        venue="ICML",
        section="3",
        formula="CE(s_k, y) + KL(s_(k-1) || s_k)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.ensemble and self.generations == 1:
            raise ValueError("one generation is no ensemble: take generations=2 or more, or ensemble=false")
        if self.generation is not None and self.generation > self.generations:
            raise ValueError(f"there is no generation {self.generation} of {self.generations}: set generations higher")
        return self

    @property
    def averages(self) -> bool:
        """Whether this part answers for all generations."""
        return self.ensemble and self.generation == self.generations

    def needs(self) -> Needs:
        return Needs(frozen=numbered("teacher", self.generations - 1) if self.averages else ("teacher",))

    def asks(self, progress: Progress) -> tuple[str, ...]:
        return ("teacher",)

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None:
            return (phase,)
        parts: list[Phase] = []
        for number in range(self.generations):
            method = dataclasses.replace(self, generation=number + 1)
            before = {role: FromPhase(p.name) for role, p in zip(method.needs().frozen, reversed(parts), strict=False)}
            parts.append(part_of(phase, number, f"generation{number + 1}", method, before))
        return tuple(parts)

    def build(self, context: Context) -> Distiller:
        return Generation(self, context)


class Generation(Learner):
    method: BAN

    def __init__(self, method: BAN, context: Context) -> None:
        super().__init__(method, context)
        earlier = [context.networks[role] for role in method.needs().frozen] if method.averages else []
        self.earlier = nn.ModuleList(copy.deepcopy(network) for network in earlier)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        losses = super().losses(batch, taught)
        return losses if self.method.labels else {"kd": losses["kd"]}

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """``ensemble``: logarithms of the mean probabilities of all generations."""
        student = logits_of(self.student(batch.images))
        if not self.earlier:
            return {"student": student}
        answers = torch.stack([student.float(), *(logits_of(network(batch.images)) for network in self.earlier)])
        return {"student": student, "ensemble": answers.log_softmax(-1).logsumexp(0) - math.log(len(answers))}
