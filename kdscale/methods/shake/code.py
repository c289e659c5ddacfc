"""The shadow of the published program: the frozen teacher's stages, fused, through a copy of the teacher's own classifier.

All logits are normalised, the shadow sees labels, and it follows the teacher by squared differences: the paper has none of
the three. Its training logs grow the distillation part over three epochs (``warmup_epochs=3``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn, zeros
from torch.nn import functional

from ...errors import NetworkError
from ...networks import Network
from ...networks.heads import FusedHead
from ...recipe import numbered
from ...tasks import logits_of
from ...types import Batch, Context, Losses, Taught
from .distiller import ShakeDistiller
from .features import channels, last_stages

if TYPE_CHECKING:
    from .value import Shake


class CodeDistiller(ShakeDistiller):
    """The student's backbone has no gradient from it, and an evaluation, which has no teacher, has no shadow."""

    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(method, context)
        self.read: dict[str, tuple[str, ...]] = {}  # by role
        for number, (name, role) in enumerate(zip(self.shadows, method.roles, strict=True)):
            teacher = context.networks[role]
            head = classifier_of(teacher)
            self.read[role] = method.fused_taps or fused_stages(teacher, head.in_features)
            self.add_module(name, FusedHead(channels(teacher, self.read[role]), width=head.in_features))
            self.register_buffer(self.copies("classifier")[number], head.weight.detach().clone())  # [C,D]
            bias = zeros(head.out_features) if head.bias is None else head.bias.detach().clone()
            self.register_buffer(self.copies("bias")[number], bias)  # [C]

    def copies(self, of: str) -> tuple[str, ...]:
        return numbered(of, len(self.shadows))

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        places = zip(self.shadows, self.method.roles, self.copies("classifier"), self.copies("bias"), strict=True)
        shadows: dict[str, Tensor] = {}
        for name, role, weight, bias in places:
            features = self.get_submodule(name)(*(taught[role].taps[tap] for tap in self.read[role]))
            shadows[name] = functional.linear(features, self.get_buffer(weight), self.get_buffer(bias))
        return self.objective(self.student(batch.images, taps=self.added_taps), shadows, batch, taught)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return {"student": logits_of(self.student(batch.images))}


def fused_stages(teacher: Network, width: int) -> tuple[str, ...]:
    """The program's own stages, the first three, where the third is as wide as the classifier's input; else the last three."""
    return ("stage1", "stage2", "stage3") if teacher.shape("stage3")[0] == width else last_stages(teacher)


def classifier_of(teacher: Network) -> nn.Linear:
    """The teacher's linear classifier. Raises NetworkError where it ends in something else."""
    head = teacher.head
    if not isinstance(head, nn.Linear):
        raise NetworkError(
            f"form='code' copies the teacher's linear classifier, and {teacher.name!r} ends in a {type(head).__name__}"
        )
    return head
