"""A running average of the student in float32, evaluated beside the raw weights. Buffers are copied, not averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..recipe import Ema as EmaValue
from .parallel import Wrapped


class Ema:
    """``average``: name -> float32 tensor of what lies here of each parameter: the whole of it, or this rank's shard."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], value: EmaValue, wrapped: Wrapped) -> None:
        """``parameters``: of the student, under its own names, as ``wrapped`` left them."""
        self.value = value
        self.wrapped = wrapped
        self.updates = 0
        self._parameters = dict(parameters)
        self.average = {name: wrapped.part(p).float().clone() for name, p in self._parameters.items()}
        self._averages = list(self.average.values())

    def decay(self) -> float:
        if not self.value.warmup:
            return self.value.decay
        return min(self.value.decay, (1 + self.updates) / (10 + self.updates))

    def _live(self) -> list[Tensor]:
        return [self.wrapped.part(p) for p in self._parameters.values()]

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        self.updates += 1
        torch._foreach_lerp_(self._averages, self._live(), 1.0 - self.decay())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module carries the average while the context lasts."""
        kept = [part.clone() for part in self._live()]
        self._write(self._averages)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for part, given in zip(self._live(), values, strict=True):
            part.copy_(given)
        self.wrapped.written()

    def whole(self) -> dict[str, Tensor]:
        """The full tensors by name, for a save. Every rank calls it."""
        return {name: self.wrapped.whole(p, self.average[name]) for name, p in self._parameters.items()}

    @torch.no_grad()
    def load(self, average: dict[str, Tensor], updates: int) -> None:
        """``average``: full tensors, as :meth:`whole` gave them."""
        self.updates = updates
        for name, mine in self.average.items():
            mine.copy_(self.wrapped.cut(self._parameters[name], average[name]))
