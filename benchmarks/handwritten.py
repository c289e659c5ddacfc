"""The rival of `kdscale bench step`: the training step that a careful person writes by hand for one method, in plain PyTorch.

It shares the networks, the batches and the optimizer's kind with the engine and nothing else: no distiller, no meter, no
clocks, no agreement. A setting that has no twin here is refused, never left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdscale.errors import RecipeError
from kdscale.methods import KD, Deit, Shake, Supervised
from kdscale.recipe import Ema, Method
from kdscale.recipe.method import kind_of

KNOWN = "supervised, kd, deit, and shake with form='paper', head='token' or 'linear', proxy_signal='kl'"
PLAIN = {"proxy_labels": (None, False), "logit_scale": (None,), "detach_features": (False,), "warmup_epochs": (0.0,)}


def refuse_strange(method: Method) -> None:
    """Raises RecipeError for a method, or a setting of one, that is not written by hand here."""
    strange = None if type(method) in (Supervised, KD, Deit, Shake) else kind_of(method)
    if isinstance(method, Shake):
        asked = {"form": method.form, "head": method.head, "proxy_signal": method.signal} | {
            n: getattr(method, n) for n in PLAIN
        }
        allowed = {"form": ("paper",), "head": ("auto", "token", "linear"), "proxy_signal": ("kl",)} | PLAIN
        strange = next((f"shake with {n}={value!r}" for n, value in asked.items() if value not in allowed[n]), None)
    if strange:
        raise RecipeError(f"bench step has no hand-written twin of {strange}: it knows {KNOWN} and the defaults beside these")


def kl(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    return F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t


def label_loss(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits, batch.labels if batch.targets is None else batch.targets)


class Student(nn.Module):
    """A network's body under the few names that the step uses. ``key``: [] int64, of the masks drawn inside the network."""

    def __init__(self, network: Any, key: Tensor) -> None:
        super().__init__()
        self.network, self.key = network, key

    def forward(self, batch: Any) -> Tensor:
        self.network.set_noise(self.key, batch.position)
        logits: Tensor = self.network.body(self.network._entered(batch.images))
        return logits.float()

    def two(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits of the class token and of the distillation token."""
        self.network.set_noise(self.key, batch.position)
        heads = self.network(batch.images).heads
        return heads["class"].float(), heads["distillation"].float()

    def pooled(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits, and what the classifier reads."""
        self.network.set_noise(self.key, batch.position)
        said = self.network(batch.images, ("pooled",))
        return said.logits.float(), said.taps["pooled"]


class Average:
    """The running average of the student's weights."""

    def __init__(self, student: nn.Module, value: Ema) -> None:
        self.value, self.updates = value, 0
        self.weights: list[Tensor] = list(student.parameters())
        self.average = [weight.detach().float().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.value.decay, (1 + self.updates) / (10 + self.updates)) if self.value.warmup else self.value.decay
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)


class ByHand:
    """``head``: SHAKE's linear shadow on what the classifier reads; None where the student has a distillation token."""

    def __init__(
        self,
        method: Any,
        student: Student,
        teacher: Callable[[Tensor], Tensor] | None,
        head: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | None,
        ema: Ema | None,
        bf16: bool,
    ) -> None:
        self.method, self.student, self.teacher, self.head, self.optimizer = method, student, teacher, head, optimizer
        self.clip, self.bf16 = clip, bf16
        self.average = None if ema is None else Average(student.network, ema)
        self.weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.objective = getattr(self, kind_of(method))

    def step(self, batch: Any) -> None:
        self.loss(batch).backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

    def loss(self, batch: Any) -> Tensor:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            taught = None
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(batch.images)
            loss: Tensor = self.objective(self.method, batch, taught)
            return loss

    def supervised(self, method: Supervised, batch: Any, taught: None) -> Tensor:
        return label_loss(self.student(batch), batch)

    def kd(self, method: KD, batch: Any, taught: Tensor) -> Tensor:
        logits = self.student(batch)
        return method.ce * label_loss(logits, batch) + method.kd * kl(logits, taught, method.temperature)

    def deit(self, method: Deit, batch: Any, taught: Tensor) -> Tensor:
        first, second = self.student.two(batch)
        if method.hard:
            learned = F.cross_entropy(second, taught.argmax(1), label_smoothing=method.teacher_smoothing)
        else:
            learned = kl(second, taught, method.tau) / (taught.shape[1] if method.reduction == "numel" else 1)
        return (1 - method.share) * label_loss(first, batch) + method.share * learned

    def shake(self, method: Shake, batch: Any, taught: Tensor) -> Tensor:
        t = method.temperature
        if self.head is None:
            first, second = self.student.two(batch)
            learned = F.cross_entropy(second, taught.argmax(1)) if method.hard else kl(second, taught, method.tau or t)
            labels, learned = (1 - method.alpha) * label_loss(first, batch), method.alpha * learned
        else:
            first, features = self.student.pooled(batch)
            second = self.head(features).float()
            labels, learned = label_loss(first, batch), kl(second, taught, t)
        return labels + learned + method.weight * (kl(first, second.detach(), t) + kl(second, first.detach(), t))
