"""What the terms that compare logits alone share: rows of what student and teacher say, and a ramp by whole epochs."""

from __future__ import annotations

import math

from ..tasks import Rows
from ..types import Batch, Context, Outputs, Progress, Taught
from .terms import Term


class LogitTerm(Term):
    """A term that reads rows of logits and no map."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.task, self.world = context.task, context.world

    def rows(self, outputs: Outputs, batch: Batch, taught: Taught) -> Rows:
        rows: Rows = self.task.rows(outputs, batch, taught, self.world)
        return rows


def linear_ramp(progress: Progress, epochs: float) -> float:
    """min(e / ``epochs``, 1) with epoch e counted from 1; 1 where ``epochs`` is 0."""
    return min((math.floor(progress.epoch) + 1) / epochs, 1.0) if epochs else 1.0
