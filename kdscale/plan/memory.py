"""Bytes that one GPU holds, and bytes that it sends, under each back-end: formulas in trained parameters, ranks and micro-batches.

Weights, gradients and moments are float32; bf16 is autocast's own affair and stands among the activations. DDP's gradients lie
in its buckets; ZeRO keeps a second copy of the weights beside the moments, cut over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..engine.parallel.zero import BUCKET
from ..recipe import SGD, AdamW
from ..recipe.optim import Optimizer
from .counted import Counted

Parallel = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
BACKENDS: tuple[Parallel, ...] = get_args(Parallel)
SHARDED = ("zero3", "fsdp2")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank. ``gathered``: whole weights of a sharded network while they are used, and reduction buckets;
    ``buffers``: what no optimizer touches, banks among them; ``data``: batches, and a resident set."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    average: float
    frozen: float
    buffers: float
    activations: float
    data: float
    overhead: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, name) for name in self.__slots__))


def moments(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's state a parameter; of a timm optimizer, two moments are taken for granted."""
    if isinstance(optimizer, SGD):
        return 4 if optimizer.momentum else 0
    if isinstance(optimizer, AdamW):
        return 8
    return 8


def memory(
    counted: Counted,
    parallel: Parallel,
    ranks: int,
    images: float,
    moment: int,
    *,
    resident: float,
    overhead: float,
    scatter: float,
) -> Memory:
    """Of one rank at ``images`` a micro-batch. ``moment``: bytes of the optimizer's state a parameter; ``resident``: bytes of a
    set that stays on the device; ``scatter``: share of the activations lost between pieces of memory."""
    weights, gradients, state, gathered = states(counted.parameters, parallel, ranks, moment, counted.block)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=state,
        gathered=gathered,
        average=4.0 * counted.averaged / (ranks if parallel in SHARDED else 1),
        frozen=float(sum(frozen.bytes for frozen in counted.frozen.values())),
        buffers=float(counted.held),
        activations=(1 + scatter) * max(0.0, counted.peak.at(images)),
        data=2 * images * counted.images + resident,
        overhead=overhead,
    )


def states(parameters: int, parallel: Parallel, ranks: int, moment: int, block: int) -> tuple[float, float, float, float]:
    """(weights, gradients, optimizer, gathered), bytes a rank."""
    p, bucket = 4.0 * parameters, 4.0 * min(BUCKET, parameters)
    own = moment * float(parameters)
    if parallel == "ddp":
        return p, p, own, 0.0
    if parallel == "zero1":
        return p, p, (own + p) / ranks, 0.0
    if parallel == "zero2":
        return p, p / ranks, (own + p) / ranks, bucket
    if parallel == "zero3":
        return p / ranks, p / ranks, (own + p) / ranks, bucket
    return p / ranks, p / ranks, own / ranks, 4.0 * block


def traffic(parameters: int, parallel: Parallel, ranks: int, accumulate: int) -> float:
    """Bytes that a rank sends in one step for weights and gradients, in a ring."""
    p, share = 4.0 * parameters, (ranks - 1) / ranks
    if parallel in ("ddp", "zero1"):
        return 2 * p * share
    if parallel == "zero2":
        return (p * accumulate + p) * share
    return (2 * p * accumulate + p * accumulate) * share
