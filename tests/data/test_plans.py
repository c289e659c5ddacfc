"""Lengths and places of steps under the three tails, and batches that ranks do not divide."""

from __future__ import annotations

import pytest

from kdscale.data import Plan, check_batch, plan
from kdscale.errors import DataError
from kdscale.recipe.data import Augment, Data

MIXED = Augment(mixup=0.8)


def test_carry_joins_epochs_without_a_gap() -> None:
    steps = plan(Data("x", batch=32), 100, 3, None)
    assert steps.total_steps == 9
    assert [steps.position(step) for step in (0, 1, 9)] == [0, 32, 288]
    assert steps.left_out == 12
    assert {step: steps.epoch_after(step) for step in range(9) if steps.epoch_after(step)} == {3: 1, 6: 2, 8: 3}
    assert steps.epoch(4) == 1.28
    assert steps.epochs == 3


def test_partial_is_the_crd_protocol() -> None:
    steps = plan(Data("x", batch=64, epoch_tail="partial"), 50_000, 240, None)
    assert steps.total_steps == 240 * 782
    assert steps.sizes == (64, 16)
    assert (steps.size(781), steps.size(782), steps.position(782)) == (16, 64, 50_000)
    assert [steps.epoch_after(step) for step in (780, 781, 1563)] == [None, 1, 2]


def test_drop_starts_each_epoch_anew() -> None:
    steps = plan(Data("x", batch=32, epoch_tail="drop"), 100, 2, None)
    assert steps.total_steps == 6
    assert [steps.position(step) for step in range(7)] == [0, 32, 64, 100, 132, 164, 200]
    assert steps.epoch_after(2) == 1
    assert steps.left_out == 0


def test_steps_give_a_length_in_epochs() -> None:
    steps = plan(Data("x", batch=10), 100, None, 25)
    assert (steps.total_steps, steps.epochs) == (25, 2.5)
    assert [step for step in range(25) if steps.epoch_after(step)] == [9, 19]


def test_a_batch_over_several_epochs_reports_the_last() -> None:
    assert plan(Data("x", batch=250), 100, 10, None).epoch_after(0) == 2


@pytest.mark.parametrize("tail", ["carry", "partial", "drop"])
def test_fractions_of_epochs(tail: str) -> None:
    assert plan(Data("x", batch=10, epoch_tail=tail), 100, 1.5, None).total_steps == 15  # type: ignore[arg-type]


def test_no_step_is_an_error() -> None:
    with pytest.raises(DataError, match=r"0.1 epochs of 100 samples make no step at batch 64"):
        plan(Data("x", batch=64), 100, 0.1, None)
    with pytest.raises(DataError, match="epoch_tail drops"):
        plan(Data("x", batch=128, epoch_tail="drop"), 100, 1, None)


def made(batch: int, augment: Augment | None = None, **more: object) -> Plan:
    return plan(Data("x", batch=batch, train=augment or Augment(), **more), 1000, 2, None)  # type: ignore[arg-type]


def test_batch_that_ranks_do_not_divide_names_the_nearest() -> None:
    check_batch(made(96), 3, 2)
    with pytest.raises(
        DataError, match="global batch 100 is not divisible by ranks 3 x accumulation 2; nearest that fit: 96, 102"
    ):
        check_batch(made(100), 3, 2)
    with pytest.raises(DataError, match="nearest that fits: 8"):
        check_batch(made(4), 8, 1)


def test_partial_tails_must_divide_too() -> None:
    with pytest.raises(DataError, match=r"the last batch of an epoch, 40, is not divisible by ranks 16"):
        check_batch(made(64, epoch_tail="partial"), 16, 1)


def test_mixing_needs_even_batches_and_pairs_on_one_rank() -> None:
    with pytest.raises(DataError, match="101 is odd, and mixup and cutmix pair its images: nearest that fit: 100, 102"):
        check_batch(made(101, MIXED), 1, 1)
    check_batch(made(104, MIXED), 4, 1)
    with pytest.raises(DataError, match="100 cannot keep mixing pairs on one rank with ranks 4; nearest that fit: 96, 104"):
        check_batch(made(100, MIXED), 4, 1)
    with pytest.raises(DataError, match="power of two"):
        check_batch(made(96, MIXED), 3, 1)


def test_no_image_is_mixed_with_its_own_copy() -> None:
    check_batch(made(1024, MIXED, repeats=3), 8, 1)
    check_batch(made(768, MIXED, repeats=3), 8, 1)
    with pytest.raises(DataError, match="mixed with its own copy"):
        check_batch(made(1024, MIXED, repeats=3, repeat_group=128), 8, 1)
    with pytest.raises(DataError, match="give a batch that 8 divides"):
        check_batch(made(6, MIXED, repeats=3), 1, 1)
