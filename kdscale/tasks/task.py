"""The seam between methods and kinds of problem.

A method reads a network as maps (taps) or as rows: ``[N,C]`` logits, one classified thing a row. The task makes the rows
and says how a loss of rows becomes a number, so that a method never asks whether a row is an image or a box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..errors import RunError
from ..types import Batch, DatasetInfo, Losses, Outputs, Taught, World


@dataclass(slots=True)
class Rows:
    """What was classified in a micro-batch of one rank."""

    logits: Tensor  # [N,C] of the network
    labels: Tensor  # [N] int64
    valid: Tensor  # [N] bool: rows that count
    units: Tensor  # 0-dim float: this rank's share of the valid things on all ranks
    teacher: dict[str, Tensor] = field(default_factory=dict)  # frozen role -> [N,C]

    def mean(self, values: Tensor) -> Tensor:
        """Sum of the valid ``values`` [N] over this rank's share: gradients, averaged over ranks, are those of one process."""
        return values.masked_fill(~self.valid, 0.0).sum() / self.units.to(values.dtype)


class Metric(Protocol):
    """Sums over an evaluation, kept on the device; nothing waits for the device before :meth:`result`."""

    def update(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds a batch. ``predictions``: logits [B,C] by name, the same names each time."""

    def result(self, total: Callable[[Tensor], Tensor], samples: int | None = None) -> dict[str, dict[str, float]]:
        """Scores by name of prediction, the same on every rank after one call of ``total`` (a sum over ranks).

        Raises RunError unless each of the samples 0 .. ``samples`` - 1 was counted exactly once, where that is given.
        """


class Task(Protocol):
    """One kind of problem."""

    name: str

    def supervised(self, outputs: Outputs, batch: Batch, world: World) -> Losses:
        """The loss of the labels alone, by name, unweighted."""

    def rows(self, outputs: Outputs, batch: Batch, taught: Taught, world: World) -> Rows:
        """What the network and its teachers say of the same things."""

    def metric(self, info: DatasetInfo) -> Metric:
        """A fresh metric of this data set."""


def logits_of(outputs: Outputs) -> Tensor:
    """The logits [N,C] of a network that was run whole. Raises RunError for one that was cut before its head."""
    if outputs.logits is None:
        raise RunError("a network was cut before its head, so it has no logits: run it whole")
    return outputs.logits
