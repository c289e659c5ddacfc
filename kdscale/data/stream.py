"""Training batches of one rank, from any step on: a function of (seed, recipe, data, step) and of nothing that came before.

Position g of a step is rank g mod R's, micro-batch (g // R) mod A's. Global batches hold the same samples with the same
pixels for any ranks, accumulation and workers; starting at step one million costs what starting at step 0 does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdscale.errors import DataError
from kdscale.recipe.data import Data
from kdscale.types import Batch

from .device import Finish, mark_erased, tensors
from .loading import Loading, start_server, worker_count
from .mix import Mixer, mix_views
from .order import Integers, sequence
from .plans import Plan, check_batch
from .reader import TrainReader
from .split import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Steps:
    """The micro-batches of one rank from step ``start`` to the end of the plan, ``accumulate`` of them a step."""

    plan: Plan
    rank: int
    ranks: int
    accumulate: int
    start: int

    @property
    def stride(self) -> int:
        return self.ranks * self.accumulate

    def __len__(self) -> int:
        return (self.plan.total_steps - self.start) * self.accumulate

    def step(self, number: int) -> int:
        return self.start + number // self.accumulate

    def positions(self, number: int) -> Integers:
        step = self.step(number)
        first = self.plan.position(step)
        residue = self.rank + self.ranks * (number % self.accumulate)
        return np.arange(first + (residue - first) % self.stride, first + self.plan.size(step), self.stride)


class TrainStream:
    """Micro-batches of one phase for one rank, on ``device``.

    ``seed``: the engine's key of (run seed, phase). ``classes``: outputs of the model, which every label must fit.
    ``local_ranks``: processes that share this machine's cores. ``views``: with more than one, ``Batch.images`` is [B,V,3,H,W],
    each view with an augmentation of its own; the first is the image that one view alone would be. DataError: a batch that
    does not divide, labels out of range.
    """

    def __init__(
        self,
        split: Split,
        data: Data,
        plan: Plan,
        *,
        seed: int,
        rank: int,
        ranks: int,
        accumulate: int,
        device: torch.device,
        classes: int,
        workers: int | Literal["auto"],
        local_ranks: int = 1,
        views: int = 1,
    ) -> None:
        check_batch(plan, ranks, accumulate)
        check_labels(split, classes)
        self.split, self.data, self.plan = split, data, plan
        self.rank, self.ranks, self.accumulate, self.device, self.views = rank, ranks, accumulate, device, views
        self.workers = worker_count(workers, local_ranks, plan.batch // (ranks * accumulate))
        self.bad = 0  # samples of this rank that on_bad=mask let pass
        self._sequence = sequence(data, plan, seed)
        self._mixer = Mixer(data.train, plan, seed, split.info.size)
        self._finish = Finish(split.info, device, data.train, classes, views)
        self._loading: Loading | None = None
        if self.workers:
            start_server()

    def batches(self, start_step: int) -> Iterator[Batch]:
        """``accumulate`` micro-batches a step, from ``start_step`` to the plan's end; a second call ends the first."""
        self.close()
        steps = Steps(self.plan, self.rank, self.ranks, self.accumulate, start_step)
        if not len(steps):
            return
        self._loading = loading = self._load(steps)
        try:
            batches = self._finished(loading, steps)
            yield from ahead(batches, self.device) if self.device.type == "cuda" else batches
        finally:
            loading.close()

    def _load(self, steps: Steps) -> Loading:
        reader = TrainReader(self.split, self.data, self._sequence, steps.stride * max(1, self.workers), self.views)
        pin = self.device.type == "cuda"
        return Loading(steps, reader, self.workers, self.data.prefetch, self.rank, pin, self.views)

    def _finished(self, loading: Loading, steps: Steps) -> Iterator[Batch]:
        for number, (images, table, notes) in enumerate(loading):
            self._count(notes, steps.step(number))
            yield self._finished_one(images, table, steps.step(number), steps.stride)

    def _finished_one(self, images: Tensor, table: Tensor, step: int, share: int) -> Batch:
        start = self.plan.position(step)
        mixing = self._mixer.on(start)
        if mixing:
            self._mixer.fill(table[:: self.views], start, self.plan.size(step), share)
            if self.views > 1:
                mix_views(table, self.views)
        erased, largest = mark_erased(table)
        return self._finish(images, table, mixing, erased, largest)

    def _count(self, notes: tuple[str, ...], step: int) -> None:
        """Bad samples are reported one by one, and bounded by a share of the epochs begun."""
        for note in notes:
            log.warning("left out: %s", note)
        self.bad += len(notes)
        allowed = self.data.max_bad * self.plan.samples * (int(self.plan.epoch(step)) + 1)
        if notes and self.bad > allowed:
            raise DataError(f"{self.bad} bad samples are more than max_bad {self.data.max_bad} allows; the last: {notes[-1]}")

    def close(self) -> None:
        """Ends the workers; the stream may be started again."""
        if self._loading is not None:
            self._loading.close()
            self._loading = None


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for as long as the process lives: memory that is free on one stream is not given to another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Prepares each batch on a stream of its own while the one before is trained on; CUDA alone."""
    copying = copy_stream(device)
    copying.wait_stream(torch.cuda.current_stream(device))  # which still makes the constants of normalisation

    def prepare() -> tuple[Batch, torch.cuda.Event] | None:
        with torch.cuda.stream(copying):
            batch = next(batches, None)
            if batch is None:
                return None
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(copying)
            return batch, event

    ready = prepare()
    while ready is not None:
        (batch, event), ready = ready, prepare()
        training = torch.cuda.current_stream(device)
        training.wait_event(event)
        for tensor in tensors(batch):
            tensor.record_stream(training)
        yield batch


def check_labels(split: Split, classes: int) -> None:
    """DataError naming the first sample whose label is not one of the model's classes."""
    labels = split.info.labels
    if labels is None:
        return
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"label {labels[first]} of {split.describe(first)} is outside 0..{classes - 1} ({classes} classes of the model); "
            f"{len(outside)} of {len(labels)} labels are"
        )
