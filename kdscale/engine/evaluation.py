"""Exact evaluation: every image of the split once, over all ranks, and the count proved by the metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data import evaluation_batches
from ..networks import Network
from ..recipe import Data
from ..tasks import Task
from ..types import Batch, DatasetInfo
from .faults.ends import Stopped
from .faults.pulse import beat
from .faults.signals import asked
from .parallel import Session
from .stage import Stage, student_of

if TYPE_CHECKING:
    from ..data.evaluate import Held

Scores = dict[str, dict[str, float]]
Answer = Callable[[Batch], dict[str, Tensor]]


@torch.no_grad()
def score(answer: Answer, batches: Iterable[Batch], task: Task, info: DatasetInfo, session: Session, whole: bool) -> Scores:
    """Scores by name of answer; the same on every rank. ``whole``: the batches must be the split, each sample once.

    Raises Stopped where a signal asks any rank to stop: nothing is known then.
    """
    metric = task.metric(info)
    for batch in agreed(batches, session):
        metric.update(answer(batch), batch)
    return metric.result(session.total, info.samples if whole else None)


def agreed(batches: Iterable[Batch], session: Session) -> Iterator[Batch]:
    """``batches``, as many on every rank, left by all ranks together: where one cannot be read, or a signal asks to stop.

    Raises Stopped, or what the reading rank met.
    """
    source = iter(batches)
    try:
        while True:
            beat("evaluating")
            batch, fault = _next(source)
            failed, stop, more = session.most_flags([fault is not None, asked() is not None, batch is not None])
            if failed:
                session.together(partial(_raise, fault))
            if batch is None or not more:
                return
            if stop:
                raise Stopped(next(name for name in session.all_of(asked()) if name))
            yield batch
    finally:
        getattr(source, "close", lambda: None)()  # of a generator with workers


def _next(source: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    try:
        return next(source, None), None
    except Exception as error:
        return None, error


def _raise(fault: Exception | None) -> None:
    if fault is not None:
        raise fault


def split_batches(
    split: Any, data: Data, session: Session, indices: np.ndarray[Any, Any] | None = None, held: Held | None = None
) -> Iterable[Batch]:
    return evaluation_batches(
        split,
        data,
        rank=session.rank,
        ranks=session.size,
        device=session.device,
        workers=data.workers,
        indices=indices,
        local_ranks=session.local_size,
        held=held,
    )


def evaluate_stage(stage: Stage) -> Scores:
    """What the distiller answers (student, shadow ...) and, beside them, the student under its EMA weights as ``ema``.

    A phase without answers reads no image.
    """
    if not stage.answers:
        return {}

    def answer(batch: Batch) -> dict[str, Tensor]:
        said: dict[str, Tensor] = stage.wrapped(batch)
        if stage.ema and "student" in said:
            with stage.ema.swapped():  # images are read once: swapping the weights costs less than decoding again
                said = {**said, "ema": stage.wrapped(batch)["student"]}
        return said

    stage.distiller.eval()
    try:
        batches = split_batches(stage.eval_split, stage.data, stage.session, held=stage.held)
        return score(answer, batches, *_where(stage), whole=True)
    finally:
        stage.distiller.train()


def evaluate_frozen(stage: Stage, held_out: int | None = None) -> Scores:
    """Each frozen network's accuracy, by role: on the whole split, or on ``held_out`` images spread over it."""
    if not stage.frozen:
        return {}
    samples = stage.eval_split.info.samples
    indices = None if held_out is None or held_out >= samples else np.arange(held_out, dtype=np.int64) * samples // held_out
    batches = split_batches(stage.eval_split, stage.data, stage.session, indices, stage.held)

    def answer(batch: Batch) -> dict[str, Tensor]:
        said = {role: network(batch.images).logits for role, network in stage.frozen.items()}
        return {role: logits for role, logits in said.items() if logits is not None}

    return score(answer, batches, *_where(stage), whole=indices is None)


def evaluate_network(network: Network, split: Any, data: Data, task: Task, session: Session) -> dict[str, float]:
    """One network on a whole split."""
    network.eval()

    def answer(batch: Batch) -> dict[str, Tensor]:
        logits = network(batch.images).logits
        return {} if logits is None else {"student": logits}

    batches = split_batches(split, data, session)
    return score(answer, batches, task, split.info, session, whole=True)["student"]


def _where(stage: Stage) -> tuple[Task, DatasetInfo, Session]:
    return stage.task, stage.eval_split.info, stage.session


__all__ = ["Scores", "evaluate_frozen", "evaluate_network", "evaluate_stage", "score", "student_of"]
