"""The order, simulated at a scale that a test can walk: what is told, and that each sample comes once."""

from __future__ import annotations

import pytest

from kdscale.benchmarks import order_at_scale


@pytest.mark.parametrize("number", range(len(order_at_scale.SETTINGS)))
def test_an_epoch_is_walked_and_every_sample_comes_once(number: int) -> None:
    found = order_at_scale.measured(number, 64, 30_000, 100)
    assert found["once"]
    assert found["samples_a_rank"] == (468, 469)
    assert found["shards"] == 300
    assert found["reads_a_shard"] == (100, 100)
    told = "\n".join(order_at_scale.told("an order", found))
    assert "samples a rank 468 to 469; each sample once: True" in told
    assert "reads a shard 100\n" in told


@pytest.mark.slow
def test_the_command_tells_of_every_order() -> None:
    told = list(order_at_scale.lines(16, 4_000, 100))
    assert told[0].startswith("4,000 samples in 40 shards, 16 ranks, batch 64")
    assert [line for line in told if not line.startswith(" ")][1:] == list(order_at_scale.SETTINGS)
