"""Exact evaluation: every image of the split once, over all ranks, and the count proved by the metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data import evaluation_batches
from ..networks import Network
from ..recipe import Data
from ..tasks import Task
from ..types import Batch, DatasetInfo
from .parallel import Session
from .stage import Stage, student_of

if TYPE_CHECKING:
    from ..data.evaluate import Held

Scores = dict[str, dict[str, float]]
Answer = Callable[[Batch], dict[str, Tensor]]


@torch.no_grad()
def score(answer: Answer, batches: Iterable[Batch], task: Task, info: DatasetInfo, session: Session, whole: bool) -> Scores:
    """Scores by name of answer; the same on every rank. ``whole``: the batches must be the split, each sample once."""
    metric = task.metric(info)

    def count() -> None:
        for batch in batches:
            metric.update(answer(batch), batch)

    session.together(count)
    return metric.result(session.total, info.samples if whole else None)


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
