"""Learning rates as pure functions of progress (a plateau's, of the recorded evaluations too): nothing to save or restore."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..recipe import Constant, Cosine, MultiStep, Plateau
from ..types import Progress

Schedule = Constant | Cosine | MultiStep | Plateau
TRAINING = "train.loss"  # the metric of a plateau that watches no evaluation


def learning_rate(schedule: Schedule, base: float, progress: Progress, history: Sequence[float] = ()) -> float:
    """The rate of the step that starts at ``progress``.

    ``base``: the optimizer's rate, already scaled to the batch. ``history``: values of a plateau's metric, oldest first.
    """
    if progress.epoch < schedule.warmup:
        return schedule.start + (base - schedule.start) * progress.epoch / schedule.warmup
    if isinstance(schedule, Cosine):
        total = schedule.total if schedule.total is not None else progress.epochs
        share = min(1.0, (progress.epoch + schedule.offset) / total)
        return schedule.end + (base - schedule.end) * 0.5 * (1.0 + math.cos(math.pi * share))
    if isinstance(schedule, MultiStep):
        passed = sum(progress.epoch + schedule.offset >= milestone for milestone in schedule.milestones)
        return float(base * schedule.factor**passed)
    if isinstance(schedule, Plateau):
        return float(max(schedule.end, base * schedule.factor ** cuts(schedule, history)))
    return base


def cuts(schedule: Plateau, history: Sequence[float]) -> int:
    """How often the metric stayed without improvement for more than ``patience`` records (torch's ReduceLROnPlateau)."""
    sign = 1.0 if schedule.mode == "max" else -1.0
    best, waited, count = -math.inf, 0, 0
    for entry in history:
        margin = schedule.threshold * (abs(best) if schedule.relative and math.isfinite(best) else 1.0)
        if sign * entry > best + margin:
            best, waited = sign * entry, 0
        else:
            waited += 1
        if waited > schedule.patience:
            waited, count = 0, count + 1
    return count


def over(schedule: Schedule, base: float, history: Sequence[float]) -> bool:
    """Whether a plateau has cut the rate down to its ``end``, where that ends the phase."""
    if not isinstance(schedule, Plateau) or not schedule.stops:
        return False
    return base * schedule.factor ** cuts(schedule, history) <= schedule.end * (1 + 1e-9)
