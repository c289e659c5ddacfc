"""Who reads what: the order of a phase walked for a while, and what each rank takes of it from which shard.

Every rank has the same number of samples by construction; what can be uneven is where they lie. It is the run's own order
(``kdscale.data.order``) that is walked, at any number of ranks, without data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.order import Integers, Sequence
from ..data.plans import Plan

AT_ONCE = 1 << 20  # positions that are looked up together


@dataclass(frozen=True, slots=True)
class Balance:
    """Over ``positions`` of the order. Pairs are (least, most). ``requests``: of blocks, for each block that is read: 1 where
    no two ranks read of one block."""

    positions: int
    shards: int
    samples_a_rank: tuple[int, int]
    shards_a_rank: tuple[int, int]
    reads_a_shard: tuple[int, int]
    shards_a_step: tuple[int, int]
    requests: float


def balance(order: Sequence, plan: Plan, counts: NDArray[np.int64], ranks: int, positions: int) -> Balance:
    """Of the first ``positions`` of ``order``, dealt to ``ranks``. ``counts``: [shards + 1], cumulative samples."""
    shards = len(counts) - 1
    read = np.zeros(shards, np.int64)
    taken = np.zeros(ranks, np.int64)
    touched = np.zeros((ranks, (shards + 7) // 8), np.uint8)  # a bit a shard
    blocks: list[Integers] = []
    steps: list[int] = []
    number = -(-plan.samples // order.block)
    for places in _pieces(positions, plan.batch):
        samples, _, _ = order.at(places)
        shard = np.searchsorted(counts, samples, "right") - 1
        rank = places % ranks
        read += np.bincount(shard, minlength=shards)
        taken += np.bincount(rank, minlength=ranks)
        np.bitwise_or.at(touched, (rank, shard // 8), (1 << shard % 8).astype(np.uint8))
        blocks.append(np.unique(rank * number + samples // order.block))
        steps += _shards_a_step(places // plan.batch, shard, shards)
    asked = np.unique(np.concatenate(blocks))
    held = np.bitwise_count(touched).sum(1)
    return Balance(
        positions=positions,
        shards=shards,
        samples_a_rank=_ends(taken),
        shards_a_rank=_ends(held),
        reads_a_shard=_ends(read),
        shards_a_step=(min(steps), max(steps)),
        requests=len(asked) / len(np.unique(asked % number)),
    )


def _pieces(positions: int, batch: int) -> Iterator[Integers]:
    """Positions from 0 on in pieces of whole steps; the last may be short."""
    size = max(1, AT_ONCE // batch) * batch
    for start in range(0, positions, size):
        yield np.arange(start, min(start + size, positions), dtype=np.int64)


def _shards_a_step(step: Integers, shard: Integers, shards: int) -> list[int]:
    """Distinct shards that the whole job reads in each step."""
    pairs = np.unique((step - step[0]) * shards + shard)
    found: list[int] = np.bincount(pairs // shards).tolist()
    return found


def _ends(values: NDArray[np.integer[Any]]) -> tuple[int, int]:
    return int(values.min()), int(values.max())
