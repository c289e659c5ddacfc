"""Classification: a row is an image, the label loss is (soft) cross-entropy, the score is top-1 and top-5.

The sums of an evaluation are integers (counts) and float64 (the loss), so accuracy does not depend on how samples were dealt
to ranks; a checksum of sample numbers shows double counting and omission even where they cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .. import keys
from ..errors import RunError
from ..losses.logits import cross_entropy, soft_cross_entropy
from ..types import Batch, DatasetInfo, Losses, Outputs, Taught, World
from .task import Rows, logits_of

_HALF = 1 << 31  # of the 61 bits of a checksum: each half, summed over ranks, is exact in float64


class Classification:
    """One label an image."""

    name = "classification"

    def supervised(self, outputs: Outputs, batch: Batch, world: World) -> Losses:
        """``ce``: cross-entropy with the batch's soft targets where it has them, else with its labels."""
        rows = self.rows(outputs, batch, {}, world)
        if batch.targets is None:
            return {"ce": rows.mean(cross_entropy(rows.logits, rows.labels))}
        return {"ce": rows.mean(soft_cross_entropy(rows.logits, batch.targets))}

    def rows(self, outputs: Outputs, batch: Batch, taught: Taught, world: World) -> Rows:
        """The logits as they are. ``outputs.logits`` [B,C]; frozen networks that have no logits are left out."""
        teacher = {role: said.logits for role, said in taught.items() if said.logits is not None}
        return Rows(logits_of(outputs), batch.labels, batch.valid, _units(batch.valid, world), teacher)

    def metric(self, info: DatasetInfo) -> ClassificationMetric:
        return ClassificationMetric(info.classes)


def _units(valid: Tensor, world: World) -> Tensor:
    count = valid.sum()
    if world.size > 1:
        count = world.total(count)
    # At least one: a batch without a valid row has loss 0, not 0/0.
    return count.clamp(min=1).float() / world.size


class ClassificationMetric:
    """Sums by name of prediction: correct among 1, correct among 5, count (int64), loss (float64), and one checksum."""

    def __init__(self, classes: int) -> None:
        self.k = min(5, classes)
        self.counts: dict[str, Tensor] = {}  # [3] int64: correct@1, correct@5, count
        self.losses: dict[str, Tensor] = {}  # [] float64: sum over samples
        self.checksum: Tensor | None = None  # [] int64: sum of mix(sample number), modulo 2**64

    @torch.no_grad()
    def update(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """``predictions``: logits [B,C] by name. A row with a NaN in it is never correct, and its loss is NaN."""
        words = keys.torch_mix(batch.index).masked_fill(~batch.valid, 0).sum()
        self.checksum = words if self.checksum is None else self.checksum + words
        for name, logits in predictions.items():
            counts = self._counts(logits, batch)
            loss = cross_entropy(logits, batch.labels).double().masked_fill(~batch.valid, 0.0).sum()
            self.counts[name] = counts + self.counts[name] if name in self.counts else counts
            self.losses[name] = loss + self.losses[name] if name in self.losses else loss

    def _counts(self, logits: Tensor, batch: Batch) -> Tensor:
        hits = logits.topk(self.k, dim=-1).indices == batch.labels[:, None]
        # topk puts NaN first, so a network that has diverged would be right wherever its NaN meets the label.
        hits &= (batch.valid & ~logits.isnan().any(-1))[:, None]
        return torch.stack([hits[:, 0].sum(), hits.sum(), batch.valid.sum()])

    def result(self, total: Callable[[Tensor], Tensor], samples: int | None = None) -> dict[str, dict[str, float]]:
        """``{name: {'top1', 'top5', 'loss', 'count'}}``: accuracies in [0, 1], the mean loss a sample, the samples counted.

        Raises RunError where nothing was counted, or where ``samples`` is given and not each of 0 .. samples - 1 was
        counted exactly once.
        """
        if self.checksum is None:
            raise RunError("an evaluation counted no batch: the evaluation split is empty")
        names = list(self.counts)
        sums = total(self._packed(names, self.checksum)).tolist()
        low, high, *rest = (int(s) for s in sums[: 2 + 3 * len(names)])
        if samples is not None and names:
            _prove(rest[2], (low + high * _HALF) % (1 << 61), samples)
        scores = {}
        for i, name in enumerate(names):
            top1, top5, count = rest[3 * i : 3 * i + 3]
            n = max(count, 1)
            scores[name] = {"top1": top1 / n, "top5": top5 / n, "loss": sums[2 + 3 * len(names) + i] / n, "count": count}
        return scores

    def _packed(self, names: list[str], checksum: Tensor) -> Tensor:
        """Everything in one float64 vector, for one sum over ranks; integers below 2**53 stay exact in it."""
        word = checksum & ((1 << 61) - 1)
        halves = torch.stack([word % _HALF, word // _HALF])
        counts = [self.counts[name] for name in names]
        losses = [self.losses[name].reshape(1) for name in names]
        return torch.cat([halves.double(), *(c.double() for c in counts), *losses])


def _prove(count: int, checksum: int, samples: int) -> None:
    if count != samples:
        raise RunError(f"an evaluation counted {count} samples of {samples}: its score is not that of the split")
    expected = int(keys.mix(np.arange(samples, dtype=np.uint64)).sum(dtype=np.uint64)) % (1 << 61)
    if checksum != expected:
        raise RunError(f"an evaluation counted {samples} samples, but not each once: its score is not that of the split")
