"""OKDDip: each peer follows its own mixture of all peers, found by attention, and a leader follows their mean.

Nothing is detached, as in the published program: peers and attention learn through the targets. The leader is the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import NetworkError
from ..losses import online
from ..losses.precision import wide
from ..recipe import Needs, Paper
from ..recipe.frozen import value
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Outputs, Taught
from .base import Distiller, Method
from .peers import PeersDistiller, branches, peer_roles
from .terms import Positive, Weight


@value
class OKDDip(Method):
    """CE of each + a ramp times ``weight`` times T^2 KL(mixture || peer), summed, and T^2 KL(mean of peers || leader).

    ``form='network'``: whole networks in the roles student, peer1, ..; ``'branch'``: the peers are further last stages of the
    student.
    """

    students: Annotated[int, Field(ge=3)] = 4  # the leader among them
    form: Literal["branch", "network"] = "branch"
    temperature: Positive = 3.0
    weight: Weight = 1.0
    rampup: Weight = 80.0  # epochs
    detach_leader_target: bool = False
    kind: Literal["okddip"] = "okddip"

    paper: ClassVar[Paper] = Paper(
        title="Online Knowledge Distillation with Diverse Peers",
        authors="Chen, Mei, Wang, Feng, Chen",
        year=2020,
        venue="AAAI",
        section="3",
        formula="sum_i CE(z_i, y) + w(epoch) [sum_a T^2 KL(sum_b A_ab z_b || z_a) + T^2 KL(mean_a z_a || z_leader)]",
    )

    def needs(self) -> Needs:
        if self.form == "branch":
            return Needs(cuts=("student",))
        return Needs(trained=peer_roles(self.students))

    def build(self, context: Context) -> Distiller:
        return OKDDipDistiller(self, context)


class OKDDipDistiller(PeersDistiller):
    def __init__(self, method: OKDDip, context: Context) -> None:
        names = peer_roles(method.students)[1:]
        after, peers = branches(context, names) if method.form == "branch" else whole(context, names)
        super().__init__(context, peers, after, method.rampup)
        self.method = method
        width = context.networks[names[0] if after is None else "student"].width
        self.query = nn.Linear(width, max(1, width // 8), bias=False)
        self.key = nn.Linear(width, max(1, width // 8), bias=False)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        said = self.answers(batch.images, ("pooled",))
        rows = self.rows(said["student"], batch, taught)
        losses = self.labelled(said, batch)
        factor = self.ramp * self.method.weight
        for role, target in self.targets(said).items():
            learned = online.softened_kl(logits_of(said[role]), target, self.method.temperature)
            losses[f"{role}<-peers"] = factor * rows.mean(learned)
        return losses

    def targets(self, said: Mapping[str, Outputs]) -> dict[str, Tensor]:
        """The logits that each follows: the leader the peers' mean, each peer its own mixture of them."""
        logits = torch.stack([logits_of(said[role]) for role in self.roles[1:]])
        features = torch.stack([said[role].taps["pooled"] for role in self.roles[1:]])
        mixtures = online.blended(online.affinities(self.query(features), self.key(features)), logits)
        mean = wide(logits).mean(0)
        if self.method.detach_leader_target:
            mean = mean.detach()
        return {"student": mean} | dict(zip(self.roles[1:], mixtures, strict=True))


def whole(context: Context, names: Sequence[str]) -> tuple[None, dict[str, nn.Module]]:
    """The networks in the roles ``names``. Raises NetworkError where their pooled features differ in width."""
    networks = {name: context.networks[name] for name in names}
    widths = {name: network.width for name, network in networks.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise NetworkError(
            f"the peers of 'okddip' share one attention over their pooled features, whose widths differ ({told}):"
            " give peer1, peer2, .. networks of one width"
        )
    return None, networks
