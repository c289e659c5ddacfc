"""Running means of named losses between two lines of the log, summed on the device in float64 without waiting for it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..types import Losses
from .parallel import Session

Sums = tuple[Tensor | None, int]


class Meter:
    """Sums since the last line. They go into a save (a list a rank), so that a resumed run prints the same means."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.count = 0  # micro-batches of this rank
        self.images = 0  # of all ranks
        self.waited = 0.0  # seconds in which the device had no data
        self.since = time.perf_counter()

    def add(self, losses: Losses) -> Tensor:
        """Adds a micro-batch; returns its total, detached."""
        values = torch.stack([loss.detach() for loss in losses.values()]).double()
        if self.sums is None or list(losses) != self.names:
            self.names = list(losses)
            self.sums, self.count = torch.zeros_like(values), 0
        self.sums += values
        self.count += 1
        return values.sum()

    def line(self) -> dict[str, Any]:
        """Means over micro-batches and ranks, and the speed; then begins anew. A collective."""
        if self.sums is None:
            return {}
        means = (self.session.total(self.sums) / (self.session.size * self.count)).tolist()
        seconds = time.perf_counter() - self.since
        line = {
            "loss": sum(means),
            "losses": dict(zip(self.names, means, strict=True)),
            "images_per_second": self.images / seconds if seconds else 0.0,
            "data_wait": self.waited / seconds if seconds else 0.0,
        }
        self.reset()
        return line

    def sums_so_far(self) -> Sums:
        return None if self.sums is None else self.sums.clone(), self.count

    def forget(self, sums: Sums) -> None:
        """Goes back to what :meth:`sums_so_far` said: a skipped step is no part of the means."""
        self.sums, self.count = sums

    def reset(self) -> None:
        self.sums, self.count, self.images, self.waited = None, 0, 0, 0.0
        self.since = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """A collective; the same on every rank."""
        mine = None if self.sums is None else self.sums.tolist()
        return {"names": self.names, "sums": self.session.all_of(mine), "count": self.count}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Each rank its own sums; with another number of ranks each takes an equal share of the total."""
        sums = [s for s in state["sums"] if s is not None]
        if not sums:
            return
        self.names, self.count = list(state["names"]), int(state["count"])
        if len(sums) == self.session.size:
            mine = sums[self.session.rank]
        else:
            mine = [sum(column) / len(sums) for column in zip(*sums, strict=True)]
        self.sums = torch.tensor(mine, dtype=torch.float64, device=device)
