"""The order, dealt to ranks: balance by counting in a loop, and settings of the order that matter at many ranks."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from kdscale.data import plan, sequence
from kdscale.plan.facts import facts_of, shards_for
from kdscale.plan.shards import balance
from kdscale.recipe import Augment, Data, Order


@pytest.mark.parametrize("order", [Order(lanes=8, block=4, window=2), Order(block=1)])
def test_balance_is_what_a_loop_counts(order: Order) -> None:
    data = Data("d", batch=24, order=order)
    schedule = plan(data, 1000, 2, None)
    counts = np.array([0, 300, 301, 700, 1000])
    walked = sequence(data, schedule, 5)
    found = balance(walked, schedule, counts, 6, 480)
    of_rank: dict[int, set[int]] = defaultdict(set)
    of_step: dict[int, set[int]] = defaultdict(set)
    blocks: set[tuple[int, int]] = set()
    reads = [0, 0, 0, 0]
    for position in range(480):
        sample = int(walked.at(np.array([position]))[0][0])
        shard = max(n for n in range(4) if counts[n] <= sample)
        of_rank[position % 6].add(shard)
        of_step[position // 24].add(shard)
        blocks.add((position % 6, sample // order.block))
        reads[shard] += 1
    assert found.samples_a_rank == (80, 80)
    assert found.reads_a_shard == (min(reads), max(reads))
    assert found.shards_a_rank == (min(map(len, of_rank.values())), max(map(len, of_rank.values())))
    assert found.shards_a_step == (min(map(len, of_step.values())), max(map(len, of_step.values())))
    assert found.requests == pytest.approx(len(blocks) / len({block for _, block in blocks}))


def test_lanes_for_every_rank_keep_blocks_together() -> None:
    counts = shards_for(200_000, 1e5)
    requests = {}
    for lanes in (16, 256):
        data = Data("d", batch=1024, order=Order(lanes=lanes, block=8, window=2))
        schedule = plan(data, 200_000, 1, None)
        requests[lanes] = balance(sequence(data, schedule, 1), schedule, counts, 256, 199_680).requests
    assert requests[256] < requests[16] / 2


def test_shards_hold_every_sample_and_are_as_large_as_advised() -> None:
    counts = shards_for(1_281_167, 110_000)
    assert counts[-1] == 1_281_167
    assert len(counts) - 1 == 551  # of 256 MB
    assert np.diff(counts).max() == 2327
    large = shards_for(13_153_500, 99_000)
    assert len(large) - 1 == pytest.approx(1300, rel=0.02)  # of 1 GB


def test_data_that_are_not_here_have_their_published_counts() -> None:
    facts = facts_of(Data("imagenet", train=Augment.deit()))
    assert (facts.info.samples, facts.info.classes, facts.samples.mark) == (1_281_167, 1000, "vendor")
    assert facts.resident == 0
    small = facts_of(Data("cifar100", train=Augment.cifar()))
    assert small.resident == 50_000 * 32 * 32 * 3
    given = facts_of(Data("cifar100", train=Augment.cifar()), samples=10, classes=3)
    assert (given.info.samples, given.info.classes, given.samples.mark) == (10, 3, "given")
