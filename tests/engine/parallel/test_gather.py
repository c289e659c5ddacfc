"""Rows of all ranks come in the order of their positions, wherever a batch begins and however small its last one is.

With the tail 'drop' an epoch may begin at a position that is not rank 0's; with 'partial' its last batch is smaller.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.engine.parallel import connect
from kdscale.engine.stage import Stage
from kdscale.methods import Supervised

from ..launch import two_ranks
from ..tails import TAILS, pack, stage_of


def gathered(stage: Stage, steps: int) -> Iterator[dict[str, Any]]:
    """Of each micro-batch: the positions of all ranks, and whether this rank's gradient is that of its own rows."""
    batches = stage.stream().batches(0)
    for step in range(steps):
        progress = stage.progress(step)
        for number in range(stage.recipe.machine.accumulate):
            batch = next(batches)
            stage.begin_micro_batch(progress, number)
            value = batch.position.double().requires_grad_()
            rows = stage.session.gather(value)
            (rows * rows.detach()).sum().backward()
            assert value.grad is not None
            own = torch.equal(value.grad, stage.session.size * value.detach())
            yield {"step": step, "number": number, "positions": rows.tolist(), "gradient": own}


def main(folder: Path) -> None:
    session = connect()
    told = {}
    for tail in TAILS:
        stage = stage_of(Supervised(), folder / tail, tail, session, accumulate=2)
        told[tail] = session.all_of(list(gathered(stage, 4 * stage.plan.steps_per_epoch)))
    if session.main:
        (folder / "told.json").write_text(json.dumps(told))
    session.close()


@pytest.mark.ranks
def test_rows_come_in_order_of_position_with_the_gradient_of_all_ranks(tmp_path: Path) -> None:
    for tail, (samples, _) in TAILS.items():
        pack(tmp_path / tail, samples)
    two_ranks("tests.engine.parallel.test_gather", tmp_path)
    told = json.loads((tmp_path / "told.json").read_text())
    for tail, (samples, batch) in TAILS.items():
        first, second = told[tail]
        assert [e["positions"] for e in first] == [e["positions"] for e in second]
        assert all(e["gradient"] for e in first + second)
        assert all(e["positions"] == sorted(e["positions"]) for e in first), tail
        expected = expected_steps(tail, samples, batch)
        for micro, others, positions in zip(first[::2], first[1::2], expected, strict=True):
            assert sorted(micro["positions"] + others["positions"]) == positions
    starts = {entry["positions"][0] % 4 for entry in told["drop"][0][::2]}
    assert len(starts) > 1
    assert {len(entry["positions"]) for entry in told["partial"][0]} == {16, 12}


def expected_steps(tail: str, samples: int, batch: int) -> list[list[int]]:
    """The positions of each step of four epochs."""
    last = samples // batch * batch if tail == "drop" else samples
    starts = [epoch * samples + inside for epoch in range(4) for inside in range(0, last, batch)]
    return [list(range(start, min(start + batch, start // samples * samples + last))) for start in starts]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
