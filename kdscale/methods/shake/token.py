"""The shadow as the distillation token's head of a DeiT, as the paper has it there: nothing is added to the network.

Of several teachers this one head follows the mean, unless each is given its own: the first teacher then has this head, and
the others linear ones on the same token, which an export leaves behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from ...errors import NetworkError
from ...losses import deit, shake
from ...networks.heads import LinearHead
from ...tasks import logits_of
from ...types import Batch, Context, Losses, Outputs, Taught
from .distiller import Logits, ShakeDistiller

if TYPE_CHECKING:
    from .value import Shake

TOKEN = "distillation"  # the tap that the token's head reads


class TokenDistiller(ShakeDistiller):
    """Labels reach the class head alone, teachers the shadows alone; drop-path is one and the same for all heads."""

    heads: ClassVar[Literal["each", "one"]] = "one"

    def __init__(self, method: Shake, context: Context) -> None:
        super().__init__(method, context)
        if method.weights == "aekd" and method.hard and len(self.shadows) < method.teachers:
            raise NetworkError(
                f"weights='aekd' of the one head of {self.student.name!r} is of gradients of KD, and hard=true has labels:"
                " set hard=false, or heads='each'"
            )
        if method.width < 1:
            raise NetworkError(
                f"width={method.width:g} is of channels, and {self.student.name!r} has a token: take head='linear'"
            )
        unheard = ", ".join(unheard_of(method))
        if unheard:
            raise NetworkError(
                f"{unheard} of 'shake' cannot be set for the token of {self.student.name!r}, whose teacher speaks by hard, alpha"
                " and tau: leave it out, or take head='linear'"
            )
        for name in self.shadows[1:]:
            self.add_module(name, LinearHead(self.student.shape(TOKEN)[0], self.student.classes))

    def answers(self, batch: Batch) -> tuple[Outputs, Logits]:
        own, *added = self.shadows
        outputs = self.student(batch.images, taps=(*((TOKEN,) if added else ()), *self.added_taps))
        said = {own: outputs.heads["distillation"]}
        return outputs, said | {name: self.get_submodule(name)(outputs.taps[TOKEN]) for name in added}

    def objective(self, outputs: Outputs, shadows: Logits, batch: Batch, taught: Taught) -> Losses:
        student = outputs.heads["class"]
        rows = self.rows(Outputs(student), batch, taught)
        teachers = {role: rows.teacher[role] for role in self.method.roles}
        learned = self.exchanged(rows, student, shadows, teachers) | self.added_losses(outputs, batch, taught)
        return self.supervised(Outputs(student), batch, 1 - self.method.alpha) | self.ramped(learned)

    @property
    def softness(self) -> float:
        return self.method.tau or self.method.temperature

    def followed(self, shadow: Tensor, teacher: Tensor) -> Tensor:
        method = self.method
        if method.hard:
            return method.alpha * deit.hard(shadow, teacher)
        return method.alpha * shake.learned(shadow, teacher, self.softness, method.divergence)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """``student`` is what ``inference`` says; the class head, the shadows and the mean of both heads are all there."""
        outputs, shadows = self.answers(batch)
        said, average = {"class": outputs.heads["class"]} | shadows, logits_of(outputs)
        if self.method.inference == "class":
            return {"student": said["class"], "average": average} | said
        return {"student": average} | said


def unheard_of(method: Shake) -> list[str]:
    """Names of the settings that are of other shadows alone and were given all the same."""
    given = {
        "proxy_signal": method.signal != "kl",
        "proxy_labels": method.labels,
        "logit_scale": method.scale is not None,
        "detach_features": method.detach_features,
    }
    return [name for name, found in given.items() if found]
