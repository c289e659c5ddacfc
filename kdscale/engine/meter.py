"""Running means of named losses between two lines of the log, summed on the device in float64 without waiting for it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..types import Losses
from .parallel import Session

Sums = tuple[list[str], Tensor | None, int, Tensor | None, int]


class Meter:
    """Sums since the last line. They go into a save (a list a rank), so that a resumed run prints the same means."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.count = 0  # micro-batches of this rank
        self.images = 0  # of all ranks
        self.waited = 0.0  # seconds in which this rank's device had no data
        self.since = time.perf_counter()
        self.waits: list[float] = []  # share of the last line's time in which each rank waited for data: equal everywhere
        self.epoch_sum: Tensor | None = None  # of the whole loss, since the epoch began
        self.epoch_count = 0

    def add(self, losses: Losses) -> Tensor:
        """Adds a micro-batch; returns its total, detached."""
        values = torch.stack([loss.detach() for loss in losses.values()]).double()
        if self.sums is None or list(losses) != self.names:
            self.names = list(losses)
            self.sums, self.count = torch.zeros_like(values), 0
        self.sums += values
        self.count += 1
        total = values.sum()
        self.epoch_sum = total if self.epoch_sum is None else self.epoch_sum + total
        self.epoch_count += 1
        return total

    def epoch_mean(self) -> float | None:
        """Mean loss over micro-batches and ranks since the last call; None where every step was skipped. A collective."""
        if self.epoch_sum is None:
            return None
        mean = float(self.session.total(self.epoch_sum)) / (self.session.size * self.epoch_count)
        self.epoch_sum, self.epoch_count = None, 0
        return mean

    def line(self) -> dict[str, Any]:
        """Means over micro-batches and ranks, the speed, and the wait for data of the rank that waited longest; then begins
        anew. A collective."""
        if self.sums is None:
            return {}
        ranks = self.session.size
        seconds = time.perf_counter() - self.since
        waits = torch.zeros(ranks, dtype=torch.float64, device=self.sums.device)
        waits[self.session.rank] = self.waited / seconds if seconds else 0.0
        told = self.session.total(torch.cat([self.sums, waits])).tolist()
        means = [value / (ranks * self.count) for value in told[:-ranks]]
        self.waits = told[-ranks:]
        line = {
            "loss": sum(means),
            "losses": dict(zip(self.names, means, strict=True)),
            "images_per_second": self.images / seconds if seconds else 0.0,
            "data_wait": max(self.waits),
        }
        self.reset()
        return line

    def sums_so_far(self) -> Sums:
        sums = None if self.sums is None else self.sums.clone()
        return self.names, sums, self.count, self.epoch_sum, self.epoch_count

    def forget(self, sums: Sums) -> None:
        """Goes back to what :meth:`sums_so_far` said: a skipped step is no part of the means."""
        self.names, self.sums, self.count, self.epoch_sum, self.epoch_count = sums

    def reset(self) -> None:
        self.sums, self.count, self.images, self.waited = None, 0, 0, 0.0
        self.since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """A collective; the same on every rank."""
        mine = None if self.sums is None else self.sums.tolist()
        epoch = 0.0 if self.epoch_sum is None else float(self.epoch_sum)
        sums, epochs = zip(*self.session.all_of((mine, epoch)), strict=True)
        return {
            "names": self.names,
            "sums": list(sums),
            "count": self.count,
            "epoch_sums": list(epochs),
            "epoch_count": self.epoch_count,
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Each rank its own sums; with another number of ranks each takes an equal share of the total."""
        epochs = state.get("epoch_sums", [])
        if epochs and state["epoch_count"]:
            mine = epochs[self.session.rank] if len(epochs) == self.session.size else sum(epochs) / len(epochs)
            self.epoch_sum = torch.tensor(mine, dtype=torch.float64, device=device)
            self.epoch_count = int(state["epoch_count"])
        sums = [s for s in state["sums"] if s is not None]
        if not sums:
            return
        self.names, self.count = list(state["names"]), int(state["count"])
        if len(sums) == self.session.size:
            means = sums[self.session.rank]
        else:
            means = [sum(column) / len(sums) for column in zip(*sums, strict=True)]
        self.sums = torch.tensor(means, dtype=torch.float64, device=device)
