"""Rates are pure functions of progress; torch's own schedulers are the oracle where there is one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.engine.schedule import cuts, learning_rate
from kdscale.recipe import Constant, Cosine, MultiStep, Plateau
from kdscale.types import Progress


def at(epoch: float, epochs: float = 100.0) -> Progress:
    return Progress(0, int(epoch * 10), int(epoch * 1000), epoch, epochs)


def test_cosine_runs_from_the_rate_to_its_end() -> None:
    schedule = Cosine(warmup=5, start=1e-6, end=1e-5)
    assert learning_rate(schedule, 1e-3, at(0)) == 1e-6
    assert learning_rate(schedule, 1e-3, at(2.5)) == pytest.approx((1e-6 + 1e-3) / 2)
    assert learning_rate(schedule, 1e-3, at(50)) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(schedule, 1e-3, at(100)) == pytest.approx(1e-5)


def test_one_cosine_over_two_phases_is_one_curve() -> None:
    whole = [learning_rate(Cosine(), 0.1, at(e, 30)) for e in range(30)]
    first = [learning_rate(Cosine(total=30), 0.1, at(e, 10)) for e in range(10)]
    second = [learning_rate(Cosine(total=30, offset=10), 0.1, at(e, 20)) for e in range(20)]
    assert whole == pytest.approx(first + second)


def test_milestones_are_whole_epochs_done() -> None:
    """The protocol's first decayed epoch is number 151, so epoch 150 done is where the rate falls."""
    schedule = MultiStep((150, 180, 210))
    assert learning_rate(schedule, 0.05, at(149.999)) == 0.05
    assert learning_rate(schedule, 0.05, at(150)) == pytest.approx(0.005)
    assert learning_rate(schedule, 0.05, at(239)) == pytest.approx(0.05e-3)


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(0, 5))
def test_plateau_equals_torch(values: list[float], patience: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    rival = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", 0.5, patience, threshold=1e-4, threshold_mode="abs", eps=0
    )
    for value in values:
        rival.step(value)
    schedule = Plateau(factor=0.5, patience=patience)
    assert learning_rate(schedule, 1.0, at(50), values) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert learning_rate(schedule, 1.0, at(50), values) == 0.5 ** cuts(schedule, values)


def test_constant_and_lowest_rate() -> None:
    assert learning_rate(Constant(), 0.3, at(7)) == 0.3
    assert learning_rate(Plateau(end=0.2, patience=0), 1.0, at(7), [1.0] * 9) == 0.2
    assert math.isclose(learning_rate(Constant(warmup=1, start=0.0), 0.3, at(0.5)), 0.15)
