"""The rival of `kdscale bench step`: the training step that a careful person writes by hand for one method, in plain PyTorch.

It shares the networks' bodies and the batches with the engine and nothing else: no distiller, no meter, no clocks, no agreement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Any], None]


def kl(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    return F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t


def label_loss(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits, batch.labels if batch.targets is None else batch.targets)


class ByHand:
    """``student``: the plain body, with ``two`` (both heads of a token model) and ``pooled`` (logits and what a head reads)."""

    def __init__(
        self, student: Any, teacher: Any, head: nn.Module | None, optimizer: torch.optim.Optimizer, bf16: bool
    ) -> None:
        self.student, self.teacher, self.head, self.optimizer, self.bf16 = student, teacher, head, optimizer, bf16

    def step(self, method: Any, batch: Any, rate: float) -> None:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(batch.images)
            loss = getattr(self, method.kind)(method, batch, taught)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def supervised(self, method: Any, batch: Any, taught: Tensor | None) -> Tensor:
        logits = self.student(batch.images)
        return label_loss(logits, batch)

    def kd(self, method: Any, batch: Any, taught: Tensor) -> Tensor:
        logits = self.student(batch.images)
        return method.ce * label_loss(logits, batch) + method.kd * kl(logits, taught, method.temperature)

    def two_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(class, second head): of a token model its two heads, else the classifier and a linear head on what it reads."""
        if self.head is None:
            return self.student.two(images)
        logits, pooled = self.student.pooled(images)
        return logits, self.head(pooled)

    def deit(self, method: Any, batch: Any, taught: Tensor) -> Tensor:
        first, second = self.two_heads(batch.images)
        return 0.5 * label_loss(first, batch) + 0.5 * F.cross_entropy(second, taught.argmax(1))

    def shake(self, method: Any, batch: Any, taught: Tensor) -> Tensor:
        t = method.temperature
        first, second = self.two_heads(batch.images)
        mutual = kl(first, second.detach(), t) + kl(second, first.detach(), t)
        if self.head is None and not method.hard:
            return 0.5 * label_loss(first, batch) + 0.5 * kl(second, taught, t) + mutual
        if self.head is None:
            return 0.5 * label_loss(first, batch) + 0.5 * F.cross_entropy(second, taught.argmax(1)) + mutual
        return label_loss(first, batch) + mutual + kl(second, taught, t)
