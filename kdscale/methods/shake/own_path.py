"""The shadow as a path of its own through the images: the student's convolutions with other batch norms, or a whole network.

Supplement, tables 1 and 3. DropBlock is the student's alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...networks import Network
from ...networks.dropblock import remove_drop_blocks
from ...networks.slimmed import slimmed
from ...networks.trainable import trainable_copy
from ...tasks import logits_of
from ...types import Batch, Context, Outputs
from .distiller import Logits, ShakeDistiller

if TYPE_CHECKING:
    from .value import Shake


class PathDistiller(ShakeDistiller):
    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(method, context)
        for number, (name, role) in enumerate(zip(self.shadows, method.roles, strict=False), 1):
            self.add_module(name, self.path(context, role, number))

    def path(self, context: Context, role: str, number: int) -> Network:
        """Of the shadow that follows ``role``."""
        if self.method.own_bn:
            return slimmed(self.student, self.method.width)
        if self.method.proxy == "teacher_copy":
            return trainable_copy(context.networks[role])
        network: Network = context.fresh("student", number)
        remove_drop_blocks(network.body)
        return network

    def answers(self, batch: Batch) -> tuple[Outputs, Logits]:
        outputs = self.student(batch.images, taps=self.added_taps)
        return outputs, {name: logits_of(self.get_submodule(name)(batch.images)) for name in self.shadows}
