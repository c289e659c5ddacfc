"""Deep mutual learning: networks from scratch that learn from the labels and from one another, without a teacher.

All are moved in one step by one forward of each; the paper's own algorithm lets each see what the step before made of the
others. Each has its own moments and rates, as if it had an optimizer to itself.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..losses import online
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Taught
from .base import Distiller, Method
from .peers import PeersDistiller, peer_roles
from .terms import Positive, Weight


@value
class DML(Method):
    """CE of each network + ``weight`` times the mean over the others of T^2 KL(other || own), others detached.

    ``one_way``: the student alone learns from the others, and they from the labels alone (the dagger of SHAKE's tables, where
    T is 4). ``form='okddip'``: the program of OKDDip, whose target is the mean of the others' logits, learns too, and has T 3.
    """

    students: Annotated[int, Field(ge=2)] = 2  # networks in all: student, peer1, ..
    temperature: Positive | None = None  # None: 1 in the paper, 3 in OKDDip's program
    weight: Weight = 1.0
    one_way: bool = False
    form: Literal["paper", "okddip"] = "paper"
    kind: Literal["dml"] = "dml"

    paper: ClassVar[Paper] = Paper(
        title="Deep Mutual Learning",
        authors="Zhang, Xiang, Hospedales, Lu",
        year=2018,
        venue="CVPR",
        section="3",
        formula="CE(z_i, y) + 1/(m-1) sum_{j != i} KL(sg z_j || z_i) for each i",
        published=(
            "ResNet-110 and ResNet-20: 71.52; one way 70.55 (SHAKE supplement, table 4)",
            "WRN-40-2 and WRN-16-2: 75.33; one way 74.83 (SHAKE supplement, table 4)",
            "resnet32x4 and resnet8x4: 74.30; one way 73.15 (SHAKE supplement, table 4)",
            "VGG-13 and VGG-8: 73.64; one way 72.86 (SHAKE supplement, table 4)",
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        if self.one_way and self.form == "okddip":
            raise ValueError("one_way detaches what form='okddip' lets learn: take form='paper' with it")
        return self

    @property
    def softness(self) -> float:
        """T, or what the form gives it."""
        return self.temperature or (1.0 if self.form == "paper" else 3.0)

    def needs(self) -> Needs:
        return Needs(trained=peer_roles(self.students))

    def build(self, context: Context) -> Distiller:
        return DMLDistiller(self, context)


class DMLDistiller(PeersDistiller):
    def __init__(self, method: DML, context: Context) -> None:
        super().__init__(context, {role: context.networks[role] for role in peer_roles(method.students)[1:]})
        self.method = method

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method = self.method
        said = self.answers(batch.images)
        rows = self.rows(said["student"], batch, taught)
        logits = {role: logits_of(outputs) for role, outputs in said.items()}
        losses = self.labelled(said, batch)
        for role in ("student",) if method.one_way else self.roles:
            others = [z for other, z in logits.items() if other != role]
            losses[f"{role}<-peers"] = method.weight * rows.mean(self.learned(logits[role], others))
        return losses

    def learned(self, own: Tensor, others: list[Tensor]) -> Tensor:
        if self.method.form == "paper":
            return online.mutual(own, others, self.method.softness)
        return online.softened_kl(own, torch.stack(others).mean(0), self.method.softness)
