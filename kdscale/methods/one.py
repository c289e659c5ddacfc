"""ONE: the student's last stage is there several times, and what a gate makes of all the answers teaches each of them.

The student is the first branch, so that it is exported as the plain network; the gate and the other branches are dropped.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..losses import online
from ..networks.branch import Gate
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Outputs, Taught
from .base import Distiller, Method
from .peers import PeersDistiller, branches
from .terms import Positive, Weight


@value
class ONE(Method):
    """CE of each branch and of the ensemble + a ramp times ``weight`` T^2 KL(ensemble || branch) for each.

    The target is detached: the gate learns from the ensemble's labels alone. A ViT branches before its last quarter.
    """

    branches: Annotated[int, Field(ge=2)] = 3  # the student among them
    temperature: Positive = 3.0
    weight: Weight = 1.0
    rampup: Weight = 80.0  # epochs
    kind: Literal["one"] = "one"

    paper: ClassVar[Paper] = Paper(
        title="Knowledge Distillation by On-the-Fly Native Ensemble",
        authors="Lan, Zhu, Gong",
        year=2018,
        venue="NeurIPS",
        section="3",
        formula="sum_i CE(z_i, y) + CE(z_e, y) + w(epoch) sum_i T^2 KL(sg z_e || z_i), z_e = sum_i gate_i z_i",
        published=("ResNet-18 on ImageNet: 70.55 top-1, 89.59 top-5 (SHAKE poster)",),
    )

    def needs(self) -> Needs:
        return Needs(cuts=("student",))

    def build(self, context: Context) -> Distiller:
        return ONEDistiller(self, context)


class ONEDistiller(PeersDistiller):
    def __init__(self, method: ONE, context: Context) -> None:
        after, others = branches(context, tuple(f"branch{number}" for number in range(2, method.branches + 1)))
        super().__init__(context, others, after, method.rampup)
        self.method = method
        self.fork = after
        self.gate = Gate(next(iter(others.values())).input_shape, method.branches)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        method, (said, ensemble) = self.method, self.together(batch.images)
        rows = self.rows(Outputs(ensemble), batch, taught)
        losses = self.labelled(said | {"ensemble": Outputs(ensemble)}, batch)
        for role, outputs in said.items():
            learned = online.softened_kl(logits_of(outputs), ensemble.detach(), method.temperature)
            losses[f"{role}<-ensemble"] = self.ramp * method.weight * rows.mean(learned)
        return losses

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        said, ensemble = self.together(batch.images)
        return {role: logits_of(outputs) for role, outputs in said.items()} | {"ensemble": ensemble}

    def together(self, images: Tensor) -> tuple[dict[str, Outputs], Tensor]:
        """What each branch says, and the logits [B,C] that the gate makes of it."""
        shared = self.student.run(images, upto=self.fork)
        said = self.continued(shared)
        logits = torch.stack([logits_of(outputs) for outputs in said.values()])
        return said, online.blended(self.gate(shared), logits)
