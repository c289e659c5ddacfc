"""Stage-by-Stage KD: each stage of the student is trained alone to give the teacher's map, then the classifier with labels.

A frozen stage needs no detaching: the images ask for no gradient, so none begins before the first trained parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import NetworkError
from ..losses.stage import Reduction, Resize, resized, stage_distance
from ..networks import Network
from ..networks.bridges import bridges
from ..networks.partition import STEM, natural_groups, parts_of
from ..networks.places import parameters_upto, read_upto
from ..recipe import FromPhase, Needs, Paper, Phase
from ..recipe.frozen import value
from ..types import Batch, Context, Losses, Outputs, Taught
from .base import Distiller, Method
from .chain import compressed, part_of
from .head_only import HeadDistiller, HeadOnly

CLASSIFIER = 0
"""The part that comes last."""


@value
class StageByStage(Method):
    """K phases, one a stage, each as long as the phase says, and one more for the classifier.

    Both networks are cut into ``stages`` runs of blocks where the resolution falls; a student's stage takes its own earlier
    ones' answer. ``variant`` 'multi_loss' trains all stages at once (K times as long) before the classifier, 'joint' is the
    usual sum CE + ``weight`` times the distances, in one phase.
    """

    stages: Annotated[int, Field(ge=1, le=8)] = 4
    variant: Literal["stages", "multi_loss", "joint"] = "stages"
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the distances in 'joint'
    reduction: Reduction = "mean"
    tap: Literal["post", "pre"] = "post"  # after or before a stage's last ReLU
    resize: Resize = "bilinear"  # of the student's maps, where the sizes differ
    stem_stage: bool = False  # the stem is the first stage
    frozen_bn: Literal["eval", "train"] = "eval"  # batch norms of parts that are not trained
    stage: Annotated[int, Field(ge=0, le=8)] | None = None  # that this phase trains, 0: the classifier; set when it is expanded
    kind: Literal["stage_by_stage"] = "stage_by_stage"

    paper: ClassVar[Paper] = replace(
        HeadOnly.paper,
        section="3",
        formula="phase i of K: mean (A_i(f_i^S) - f_i^T)^2 over S_i alone, f_i^S = S_i(sg f_(i-1)^S); last: CE(s, y) over the classifier",
        published=(
            "CIFAR-100, ResNet-56 (71.21) -> ResNet-20 (67.96), 1 to 8 stages: 69.24 70.03 70.46 70.77 70.79 70.82 70.85 70.93 (table 2)",
            "the same, all stages at once, 1 to 4: 69.24 69.29 69.37 69.46 (table 3)",
            "CIFAR-100, 4 stages, ResNet-20 from VGG-16 69.98, from ResNet-110 70.84, from DenseNet-121 73.27 (table 4)",
        ),
    )

    def needs(self) -> Needs:
        if self.stage == CLASSIFIER:
            return Needs()
        return Needs(frozen=("teacher",), cuts=("student", "teacher"))

    def phases(self, phase: Phase) -> tuple[Phase, ...]:
        if phase.part is not None or self.variant == "joint":
            return (phase,)
        last = replace(self, stage=CLASSIFIER)
        if self.variant == "multi_loss":
            done = [part_of(lengthened(phase, self.stages), 0, "stages", replace(self, stage=None))]
        else:
            done = [part_of(phase, 0, "stage1", replace(self, stage=1))]
            for number in range(2, self.stages + 1):
                before = {"student": FromPhase(done[-1].name)}
                done.append(part_of(phase, number - 1, f"stage{number}", replace(self, stage=number), before))
        return (*done, part_of(phase, len(done), "head", last, {"student": FromPhase(done[-1].name)}))

    def reads(self, networks: Mapping[str, Network]) -> Mapping[str, tuple[str, ...]]:
        if self.stage == CLASSIFIER:
            return {}
        return {"teacher": tuple(theirs for _, theirs in self.places(networks))}

    def places(self, networks: Mapping[str, Network]) -> list[tuple[str, str]]:
        """(student's place, teacher's place) at the end of each stage that is compared.

        Raises NetworkError for a network that cannot be cut so, or has no map before the ReLU where it is cut.
        """
        pair = [networks["student"], networks["teacher"]]
        fewest = min(len(natural_groups(network)) for network in pair)
        ends = [[self.place(n, part[-1]) for part in parts_of(n, self.stages, fewest, self.stem_stage)] for n in pair]
        every = list(zip(*ends, strict=True))
        return every if self.stage is None else every[self.stage - 1 : self.stage]

    def place(self, network: Network, block: str) -> str:
        """Where the stage that ends with ``block`` is read."""
        if self.tap == "post" or block == STEM:
            return block
        closed = [f"stage{number}.pre" for number, group in enumerate(network.cuts, 1) if group[-1] == block]
        if not closed or closed[0] not in network.tap_names():
            raise NetworkError(f"network {network.name!r} shows no map before the ReLU of its block {block}: take tap='post'")
        return closed[0]

    def build(self, context: Context) -> Distiller:
        if self.stage == CLASSIFIER:
            return HeadDistiller(context, self.frozen_bn)
        return StageDistiller(self, context)


class StageDistiller(Distiller):
    """One stage of the student, or all, beside the teacher's. What is not trained stays as it is, what comes later is not run."""

    def __init__(self, method: StageByStage, context: Context) -> None:
        super().__init__(context, method.frozen_bn)
        self.method = method
        self.places = method.places(context.networks)
        resize = partial(resized, how=method.resize)
        self.bridges = nn.ModuleList(bridges(self.student, context.networks["teacher"], self.places, resize))
        if method.variant != "joint":
            train_only(self.student, trained_parameters(method, self.student, context))

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        joint = self.method.variant == "joint"
        outputs = read_upto(self.student, batch.images, [mine for mine, _ in self.places], logits=joint)
        theirs = taught["teacher"].taps
        losses = self.supervised(outputs, batch) if joint else {}
        distances = {}
        for number, (bridge, (mine, other)) in enumerate(zip(self.bridges, self.places, strict=True), self.method.stage or 1):
            student, teacher = bridge(outputs.taps[mine], theirs[other])
            distances[f"stage{number}"] = stage_distance(student, teacher, self.method.reduction)
        # A network that was cut has no logits: of its rows the distances alone are there.
        rows = self.rows(Outputs(torch.stack(list(distances.values()), 1)), batch, {})
        weight = self.method.weight if joint else 1.0
        return losses | {name: weight * rows.mean(distance) for name, distance in distances.items()}

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """None before there is a classifier to speak of."""
        return super().predictions(batch) if self.method.variant == "joint" else {}


def trained_parameters(method: StageByStage, student: Network, context: Context) -> set[str]:
    """Names of the student's parameters that the phase trains: of one stage, or of all."""
    *_, (last, _) = method.places(context.networks)
    found = parameters_upto(student, last)
    if method.stage is None or method.stage == 1:
        return found
    earlier = replace(method, stage=method.stage - 1)
    return found - parameters_upto(student, earlier.places(context.networks)[0][0])


def train_only(network: Network, names: set[str]) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)


def lengthened(phase: Phase, times: int) -> Phase:
    """The phase ``times`` as long, its schedule with it."""
    length = {"epochs": phase.epochs * times} if phase.epochs else {"steps": (phase.steps or 0) * times}
    return replace(phase, schedule=compressed(phase.schedule, times), **length)
