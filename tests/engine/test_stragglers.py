"""Ranks that wait for data longer than the others."""

from kdscale.engine.stragglers import Stragglers


def test_a_rank_is_told_of_once_after_three_slow_lines_in_a_row() -> None:
    slow, even = [0.02, 0.4, 0.03, 0.02], [0.02, 0.02, 0.03, 0.02]
    watch = Stragglers()
    assert [watch.found(waits) for waits in (slow, slow, even, slow, slow, slow, slow)] == [[], [], [], [], [], [1], []]


def test_small_waits_equal_waits_and_one_rank_alone_are_no_stragglers() -> None:
    watch = Stragglers()
    for waits in ([0.0, 0.09, 0.0], [0.5, 0.6, 0.5], [0.9]):
        assert all(not watch.found(waits) for _ in range(4))


def test_one_that_comes_and_goes_is_told_of_once() -> None:
    watch, slow, even = Stragglers(), [0.0, 0.5], [0.0, 0.0]
    assert [watch.found(waits) for waits in (slow, slow, slow, even, slow, slow, slow)] == [[], [], [1], [], [], [], []]


def test_of_two_ranks_the_slower_is_found() -> None:
    watch = Stragglers()
    assert [watch.found([0.0, 0.5]) for _ in range(3)] == [[], [], [1]]
