"""One word a step, by which every rank learns what happened to any rank: a data error, a signal, a loss that is not finite.

No rank ever raises alone inside a step. On a GPU the verdict on a step is copied to the host behind the computation and read
a step or two later, so that nothing waits for it; ``settle`` waits, and nothing is logged, evaluated or saved before it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import DataError
from ...types import Batch
from ..parallel import Session
from .ends import NonFinite
from .signals import Signals

MAX_SKIPPED = 10  # steps in a row
BEHIND = 2  # verdicts that may be on their way


@dataclass(slots=True)
class Verdict:
    """Whether a step was bad, on its way to the host; ``index``: the sample numbers of its micro-batches."""

    step: int
    flag: Tensor  # bool: of this rank's own loss first, and of the norm, which is the same on every rank
    index: list[Tensor]
    event: torch.cuda.Event | None

    def arrived(self) -> bool:
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def bad(self) -> bool:
        if self.event is not None:
            self.event.synchronize()
        return bool(self.flag.any())

    def own(self) -> bool:
        """Whether it was this rank's loss, of a step that is bad."""
        return bool(self.flag.view(-1)[0])


class Agreement:
    def __init__(self, session: Session, signals: Signals, phase: str) -> None:
        self.session, self.signals, self.phase = session, signals, phase
        self.skipped = 0  # steps in a row
        self._verdicts: deque[Verdict] = deque()

    def before(self, fault: DataError | None) -> str | None:
        """Before a step computes: the signal that asks for a stop, if any rank saw one. Raises for what any rank met."""
        bad = self._read(wait=False)
        failed, stop, poisoned = self.session.most_flags([fault is not None, self.signals.asked is not None, bad is not None])
        if poisoned:
            self._stop(bad)
        if failed:
            told = [text for text in self.session.all_of(str(fault) if fault else None) if text]
            raise DataError(told[0]) from fault
        return next(s for s in self.session.all_of(self.signals.asked) if s) if stop else None

    def judge(self, step: int, batches: list[Batch], total: Tensor, norm: Tensor | None) -> None:
        """Notes the verdict on a step. One rank on the CPU reads it at once."""
        flag = ~torch.stack([total.isfinite(), *([] if norm is None else [norm.isfinite()])])
        event = None
        if flag.is_cuda:
            flag = flag.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._verdicts.append(Verdict(step, flag, [batch.index for batch in batches], event))
        if self.session.size == 1 and event is None:
            self.settle()

    def skips(self, step: int, batches: list[Batch], norm: Tensor) -> bool:
        """``nonfinite='skip'``: whether the step is to be left out. The norm is the same on every rank."""
        if math.isfinite(norm.item()):
            self.skipped = 0
            return False
        self.skipped += 1
        if self.skipped >= MAX_SKIPPED:
            self._stop(Verdict(step, norm, [batch.index for batch in batches], None), f" for the {MAX_SKIPPED}th time in a row")
        return True

    def settle(self) -> None:
        """Waits for every verdict. A collective."""
        bad = self._read(wait=True)
        if self.session.most_flags([bad is not None])[0]:
            self._stop(bad)

    def _read(self, wait: bool) -> Verdict | None:
        """The first bad step among the verdicts that have arrived; all of them when waiting."""
        while self._verdicts and (wait or len(self._verdicts) > BEHIND or self._verdicts[0].arrived()):
            verdict = self._verdicts.popleft()
            if verdict.bad():
                return verdict
        return None

    def _stop(self, mine: Verdict | None, again: str = "") -> None:
        if mine is None:
            mine = self._read(wait=True)
        told = self.session.all_of(
            None if mine is None else (mine.step, [int(i) for t in mine.index for i in t.tolist()], mine.own())
        )
        step = min(word[0] for word in told if word)
        words = {rank: word for rank, word in enumerate(told) if word and word[0] == step}
        own = {rank: word for rank, word in words.items() if word[2]} or words  # where none is: a gradient that is not finite
        indices = sorted(i for word in own.values() for i in word[1])
        shown = ", ".join(map(str, indices[:16])) + (f" and {len(indices) - 16} more" if len(indices) > 16 else "")
        whose = f" of rank {', '.join(map(str, own))}" if len(own) < len(told) else ""
        cure = "" if again else ", or go on with nonfinite=skip"
        raise NonFinite(
            f"the loss{whose} is not finite at step {step} of phase {self.phase!r}{again} (samples {shown}); the last save is kept:"
            f" lower the learning rate or set optimizer.clip{cure}"
        )
