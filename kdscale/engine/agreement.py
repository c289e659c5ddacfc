"""One word a step, by which every rank learns what happened to any rank: a data error, a signal, a loss that is not finite.

No rank ever raises alone inside a step. On several ranks, and on a GPU, the verdict on a step is read one step later, so that
nothing waits for it; ``settle`` reads it at once, and nothing is logged, evaluated or saved before it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import DataError
from ..types import Batch
from .faults import NonFinite, Signals
from .parallel import Session

MAX_SKIPPED = 10  # steps in a row


class Agreement:
    def __init__(self, session: Session, signals: Signals, phase: str) -> None:
        self.session, self.signals, self.phase = session, signals, phase
        self.skipped = 0  # steps in a row
        self._flag: Tensor | None = None  # of the last step: its loss or gradient was not finite
        self._step = 0
        self._batches: list[Batch] = []
        self._lazy = session.size > 1 or session.device.type == "cuda"

    def before(self, fault: DataError | None) -> str | None:
        """Before a step computes: the signal that asks for a stop, if any rank saw one. Raises for what any rank met."""
        mine = self.signals.asked
        if self.session.size == 1:
            if fault is not None:
                raise fault
            return mine
        poisoned = torch.zeros((), device=self.session.device) if self._flag is None else self._flag
        word = torch.tensor([fault is not None, mine is not None], dtype=torch.int32).to(self.session.device, non_blocking=True)
        failed, stop, bad = self.session.most(torch.cat([word, poisoned.int().reshape(1)])).tolist()
        if bad:
            self._stop()
        if failed:
            told = [text for text in self.session.all_of(str(fault) if fault else None) if text]
            raise DataError(told[0]) from fault
        return next(s for s in self.session.all_of(mine) if s) if stop else None

    def judge(self, step: int, batches: list[Batch], total: Tensor, norm: Tensor | None) -> None:
        """Notes the verdict on a step, before its weights move. On one CPU rank it is read at once."""
        self._step, self._batches = step, batches
        self._flag = ~total.isfinite() if norm is None else ~(total.isfinite() & norm.isfinite())
        if not self._lazy:
            self.settle()

    def skips(self, step: int, batches: list[Batch], norm: Tensor) -> bool:
        """``nonfinite='skip'``: whether the step is to be left out. The norm is the same on every rank."""
        if math.isfinite(norm.item()):
            self.skipped = 0
            return False
        self.skipped += 1
        if self.skipped >= MAX_SKIPPED:
            self._step, self._batches = step, batches
            self._stop()
        return True

    def settle(self) -> None:
        """Waits for the verdict on the last step. A collective."""
        if self._flag is not None:
            flag, self._flag = self._flag.int(), None
            if bool(self.session.most(flag)):
                self._stop()

    def _stop(self) -> None:
        mine = [int(i) for batch in self._batches for i in batch.index.tolist()]
        indices = sorted(i for rank in self.session.all_of(mine) for i in rank)
        shown = ", ".join(map(str, indices[:16])) + (f" and {len(indices) - 16} more" if len(indices) > 16 else "")
        raise NonFinite(
            f"the loss is not finite at step {self._step} of phase {self.phase!r} (samples {shown}); the last save is kept:"
            " lower the learning rate, set optimizer.clip, or go on with nonfinite=skip"
        )
