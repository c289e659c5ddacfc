"""A running average of the student in float32, evaluated beside the raw weights. Buffers are copied, not averaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..recipe import Ema as EmaValue


class Ema:
    """``average``: name -> float32 tensor, for every parameter of ``module`` (the student)."""

    def __init__(self, module: nn.Module, value: EmaValue) -> None:
        self.value = value
        self.module = module
        self.updates = 0
        self.average = {name: p.detach().float().clone() for name, p in module.named_parameters()}
        self._averages = list(self.average.values())
        self._parameters = [p for _, p in module.named_parameters()]

    def decay(self) -> float:
        if not self.value.warmup:
            return self.value.decay
        return min(self.value.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        self.updates += 1
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1.0 - self.decay())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module carries the average while the context lasts."""
        kept = [p.detach().clone() for p in self._parameters]
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, given in zip(self._parameters, values, strict=True):
            parameter.copy_(given)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor], updates: int) -> None:
        self.updates = updates
        for name, mine in self.average.items():
            mine.copy_(average[name])
