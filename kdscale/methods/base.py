"""What every method shares: the value that a recipe holds, and the module that a phase trains.

A distiller's ``forward`` is the one door through which the engine calls it, because back-ends (DDP, ZeRO, FSDP2) wrap
``forward`` and nothing else. Autocast is opened behind that door, not around it: DeepSpeed closes an outer one.
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from .. import keys, recipe
from ..errors import NetworkError
from ..networks import Network, suggest_distilled
from ..recipe.frozen import value
from ..tasks import Rows, logits_of
from ..types import Batch, Context, Losses, Outputs, Progress, Taught


@value
class Method(recipe.Method):
    """A recipe's method that can build what it trains."""

    def build(self, context: Context) -> Distiller:
        """The module of one phase. Frozen networks of ``context`` may be read here, never kept."""
        raise NotImplementedError


class Distiller(nn.Module):
    """All that a phase trains. A subclass writes ``losses`` and, where it has more to show than the student, ``predictions``.

    Buffers that are set from the clock are not persistent: a save holds the clock itself.
    """

    student: Network
    noise_key: Tensor  # [] int64: of (seed, phase, step), for masks drawn inside networks
    share: Tensor  # [] float: of the phase that is done

    def __init__(self, context: Context, frozen_bn: Literal["eval", "train"] = "eval", student: str = "student") -> None:
        """``frozen_bn='train'``: modules without a trained parameter follow the batch too. ``student``: role of the network
        that is evaluated and exported."""
        super().__init__()
        self.student = context.networks[student]
        self.task: Any = context.task
        self.world = context.world
        self.seed = context.seed
        self.autocast = context.precision == "bf16"
        self.frozen_bn = frozen_bn
        self._networks: list[Network] | None = None
        self.register_buffer("noise_key", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("share", torch.zeros(()), persistent=False)

    @final  # type: ignore[misc]
    def forward(self, batch: Batch, taught: Taught | None = None) -> dict[str, Tensor]:
        """Losses where ``taught`` is given (empty where the method has no frozen network), else predictions."""
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.autocast):
            if taught is None:
                return self.predictions(batch)
            for number, network in enumerate(self.networks()):  # peers drop other paths than the student
                network.set_noise(self.noise_key + number, batch.position)
                network.set_clock(self.share)
            return self.losses(batch, taught)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        """Named, weighted scalars whose sum is minimised."""
        raise NotImplementedError

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        """Logits [B,C] by name, of what an evaluation measures."""
        return {"student": logits_of(self.student(batch.images))}

    def before_step(self, progress: Progress) -> None:
        """Once an optimizer step, before its first micro-batch: the clock goes into 0-dim buffers."""
        self.noise_key.fill_(keys.signed(keys.key(self.seed, progress.phase, progress.step)))
        self.share.fill_(progress.epoch / progress.epochs)

    def after_step(self, progress: Progress) -> None:
        """Once an optimizer step, after it."""

    def parts(self) -> dict[str, nn.Module]:
        """The trained parts by name, for rates, decay and logs."""
        return {name: child for name, child in self.named_children() if any(p.requires_grad for p in child.parameters())}

    def networks(self) -> list[Network]:
        """The whole networks among the parts, wherever they stand."""
        if self._networks is None:
            self._networks = [module for module in self.modules() if hasattr(module, "set_noise")]  # type: ignore[misc]
        return self._networks

    @final
    def train(self, mode: bool = True) -> Distiller:
        """As ``nn.Module.train``, but whatever holds parameters of which none is trained stays in eval mode."""
        super().train(mode)
        if mode and self.frozen_bn == "eval":
            _rest(self)
        return self

    def supervised(self, outputs: Outputs, batch: Batch, weight: float = 1.0) -> Losses:
        """The task's label loss times ``weight``."""
        return {name: weight * loss for name, loss in self.task.supervised(outputs, batch, self.world).items()}

    def rows(self, outputs: Outputs, batch: Batch, taught: Taught) -> Rows:
        """What the network and the frozen ones say of the same things, a row each."""
        rows: Rows = self.task.rows(outputs, batch, taught, self.world)
        return rows


def require_distillation_head(network: Network, kind: str) -> None:
    """Raises NetworkError, with a model that has one, where ``network`` has no distillation token."""
    if not network.has_distillation_head:
        raise NetworkError(
            f"method {kind!r} needs a student with a distillation token, and {network.name!r} has none:"
            f" take {suggest_distilled(network.name)}"
        )


def _rest(module: nn.Module) -> None:
    for child in module.children():
        parameters = list(child.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            child.eval()
        else:
            _rest(child)
