"""How long a phase is and where each of its steps stands in the order: arithmetic on (samples, batch, tail), no state.

An epoch is one pass over N positions, with repeats too: repeated augmentation makes the permutation advance more slowly,
it does not lengthen the epoch. With the tail ``carry`` a batch may hold the end of one epoch and the start of the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from kdscale.errors import DataError
from kdscale.recipe.data import Data

MIX_SPAN = 256
"""Mixing partners are at multiples of gcd(batch / 2, 256) slots, so that up to 256 ranks keep every pair together."""

ROUNDING = 1e-9  # of a product of a float number of epochs and a whole number of samples


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one phase over a split of ``samples`` samples; ``asked_epochs`` is None for a length in steps."""

    samples: int
    batch: int
    epoch_tail: Literal["carry", "partial", "drop"]
    total_steps: int
    asked_epochs: float | None
    repeats: int = 1
    repeat_group: int = 1
    mixing: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch under the tails ``partial`` and ``drop``, which start each epoch with a fresh batch."""
        return max(1, -(-self.samples // self.batch) if self.epoch_tail == "partial" else self.samples // self.batch)

    @property
    def epochs(self) -> float:
        """Length of the phase in epochs, as asked for; of a phase given in steps, as far as its steps reach."""
        return self.epoch(self.total_steps) if self.asked_epochs is None else self.asked_epochs

    @property
    def left_out(self) -> int:
        """Positions of the asked epochs that no step holds: fewer than a batch."""
        if self.asked_epochs is None:
            return 0
        return max(0, math.floor(self.asked_epochs * self.samples + ROUNDING) - self.position(self.total_steps))

    def position(self, step: int) -> int:
        """The position at which step number ``step`` (from 0) starts."""
        if self.epoch_tail == "carry":
            return step * self.batch
        epoch, inside = divmod(step, self.steps_per_epoch)
        return epoch * self.samples + inside * self.batch

    def size(self, step: int) -> int:
        """Samples in step number ``step``: the batch, or the remainder of an epoch under the tail ``partial``."""
        if self.epoch_tail != "partial":
            return self.batch
        return min(self.batch, self.samples - (step % self.steps_per_epoch) * self.batch)

    def epoch(self, steps_done: int) -> float:
        """Epochs behind after ``steps_done`` steps."""
        return self.position(steps_done) / self.samples

    def epoch_after(self, step: int) -> int | None:
        """Epochs complete after step number ``step`` (from 0), if that step completes one; else None.

        The first epoch to complete is number 1. The last step of whole epochs completes the last one, although fewer
        than a batch of its positions may be left out.
        """
        before, after = self.position(step) // self.samples, self.position(step + 1) // self.samples
        if step + 1 == self.total_steps and self.asked_epochs is not None and self.asked_epochs == int(self.asked_epochs):
            after = int(self.asked_epochs)
        return after if after > before else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The different step sizes that occur: one, or two with a partial tail."""
        last = self.size(self.steps_per_epoch - 1)
        return (self.batch,) if last == self.batch else (self.batch, last)


def plan(data: Data, samples: int, epochs: float | None, steps: int | None) -> Plan:
    """The plan of a phase of ``epochs`` or of ``steps``; exactly one is given. DataError: no step comes of it."""
    if samples < 1:
        raise DataError(f"split {data.train_split} of {data.source} has no samples")
    if data.epoch_tail == "drop" and samples < data.batch:
        raise DataError(f"batch {data.batch} is larger than the {samples} samples, and epoch_tail drops short batches")
    empty = Plan(
        samples=samples,
        batch=data.batch,
        epoch_tail=data.epoch_tail,
        total_steps=0,
        asked_epochs=None if epochs is None else float(epochs),
        repeats=data.repeats,
        repeat_group=data.repeat_group or default_group(data.batch),
        mixing=data.train.mixup > 0 or data.train.cutmix > 0,
    )
    total = steps if epochs is None else _steps(empty, epochs)
    if not total or total < 1:
        raise DataError(f"{epochs} epochs of {samples} samples make no step at batch {data.batch}: give a smaller batch")
    return replace(empty, total_steps=total)


def _steps(plan: Plan, epochs: float) -> int:
    if plan.epoch_tail == "carry":
        return math.floor(epochs * plan.samples / plan.batch + ROUNDING)
    whole, part = divmod(epochs, 1)
    return int(whole) * plan.steps_per_epoch + math.floor(part * plan.samples / plan.batch + ROUNDING)


def mix_span(batch: int) -> int:
    """The number of interleaved classes of slots within which mixing pairs are formed; ``batch`` is even."""
    return math.gcd(batch // 2, MIX_SPAN) if batch >= 2 and batch % 2 == 0 else 1


def default_group(batch: int) -> int:
    """Distance of the copies of a repeated image: a quarter of the span, so no image is mixed with its own copy."""
    return max(1, mix_span(batch) // 4)


def check_batch(plan: Plan, ranks: int, accumulate: int) -> None:
    """DataError unless every step divides by ranks x accumulation and every mixing pair meets in one micro-batch."""
    share = ranks * accumulate
    names = f"ranks {ranks}" + (f" x accumulation {accumulate}" if accumulate > 1 else "")
    for size in plan.sizes:
        what = f"global batch {size}" if size == plan.batch else f"the last batch of an epoch, {size},"
        if plan.mixing and size % 2:
            raise DataError(f"{what} is odd, and mixup and cutmix pair its images: {_nearest(size, 2)}")
        if size % share:
            raise DataError(f"{what} is not divisible by {names}; {_nearest(size, share)}")
        if plan.mixing and mix_span(size) % share:
            raise DataError(f"{what} cannot keep mixing pairs on one rank with {names}; {_nearest_mixing(size, share)}")
    _check_siblings(plan)


def _nearest(size: int, step: int) -> str:
    low = size // step * step
    return f"nearest that fit: {low}, {low + step}" if low else f"nearest that fits: {step}"


def _nearest_mixing(size: int, share: int) -> str:
    if MIX_SPAN % share:
        return f"mixing needs ranks x accumulation to be a power of two up to {MIX_SPAN}"
    return _nearest(size, 2 * share)


def _check_siblings(plan: Plan) -> None:
    """Copies of an image lie multiples of the group apart; mixing partners lie multiples of the span apart."""
    span = mix_span(plan.batch)
    if plan.mixing and any(copy * plan.repeat_group % span == 0 for copy in range(1, plan.repeats)):
        raise DataError(
            f"with repeat_group {plan.repeat_group} an image of a batch of {plan.batch} could be mixed with its own copy: "
            f"give a batch that 8 divides, or a group of which no multiple up to {plan.repeats - 1} divides by {span}"
        )
