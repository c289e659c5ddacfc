"""What the methods without a teacher share: networks that learn side by side, whole or as branches of one, and a ramp.

The student is one of them and the others are its peers. As branches they read the map that the student's own lower blocks
made, so an exported student is still the plain network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn, ones

from ..networks.branch import Branch, before_last_stage
from ..tasks import logits_of
from ..types import Batch, Context, Losses, Outputs, Progress
from .base import Distiller


def peer_roles(students: int) -> tuple[str, ...]:
    """('student', 'peer1', ..): of ``students`` networks, the exported one first."""
    return ("student", *(f"peer{number}" for number in range(1, students)))


def branches(context: Context, names: tuple[str, ...]) -> tuple[str, dict[str, Branch]]:
    """(the last shared block, newly drawn copies of the student's last stage and classifier by name).

    Raises NetworkError for a student that cannot be run in spans of blocks.
    """
    after = before_last_stage(context.networks["student"])
    return after, {name: Branch(context.fresh("student", copy), after) for copy, name in enumerate(names, 1)}


def gaussian_ramp(epoch: float, length: float) -> float:
    """exp(-5 (1 - e/length)^2) from 0.0067 at the start to 1 at ``length`` epochs; e counts whole epochs from 0.

    Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, which ONE and OKDDip follow.
    """
    done = min(math.floor(epoch), length) / length if length else 1.0
    return math.exp(-5 * (1 - done) ** 2)


class PeersDistiller(Distiller):
    """The student and ``peers``, each a part and an answer of its own.

    ``after``: the block up to which the student's blocks are shared; ``None``: every peer is a whole network. ``rampup``:
    epochs until ``ramp`` is 1.
    """

    ramp: Tensor  # [] float: factor on what they learn from one another

    def __init__(self, context: Context, peers: Mapping[str, nn.Module], after: str | None = None, rampup: float = 0.0) -> None:
        super().__init__(context)
        for name, peer in peers.items():
            self.add_module(name, peer)
        self.roles = ("student", *peers)
        self.after, self.rampup = after, rampup
        self.register_buffer("ramp", ones(()), persistent=False)

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.ramp.fill_(gaussian_ramp(progress.epoch, self.rampup))

    def answers(self, images: Tensor, taps: tuple[str, ...] = ()) -> dict[str, Outputs]:
        """What each says of ``images`` [B,3,H,W], or of its own view of them in [B,V,3,H,W]."""
        if self.after is not None:
            return self.continued(self.student.run(images, upto=self.after), taps)
        views = images.unbind(1) if images.ndim == 5 else [images] * len(self.roles)
        return {role: self.get_submodule(role)(view, taps) for role, view in zip(self.roles, views, strict=True)}

    def continued(self, shared: Tensor, taps: tuple[str, ...] = ()) -> dict[str, Outputs]:
        """What each branch says of the map of the last shared block."""
        said = {"student": self.student.run(shared, self.after, taps=taps)}
        return said | {role: self.get_submodule(role)(shared, taps) for role in self.roles[1:]}

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return {role: logits_of(said) for role, said in self.answers(batch.images).items()}

    def labelled(self, said: Mapping[str, Outputs], batch: Batch, weight: float = 1.0) -> Losses:
        """Each one's own label loss: the student's by its plain name, another's as 'peer1<-ce'."""
        losses: Losses = {}
        for role, outputs in said.items():
            head = "" if role == "student" else f"{role}<-"
            losses |= {f"{head}{name}": loss for name, loss in self.supervised(outputs, batch, weight).items()}
        return losses
