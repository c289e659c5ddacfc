"""Keys are one function in three forms: Python ints, numpy words, torch's signed words. The vectors are the published ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdscale import keys

word = st.integers(0, keys.MASK)
words = st.lists(word, min_size=1, max_size=20)
number = st.integers(0, 2**31)


def array(values: list[int]) -> keys.U64:
    return np.array(values, dtype=np.uint64)


def tensor(values: list[int]) -> torch.Tensor:
    return torch.tensor([keys.signed(value) for value in values])


def unsigned(t: torch.Tensor) -> list[int]:
    return [value & keys.MASK for value in t.tolist()]


def test_published_vectors() -> None:
    assert keys.key() == 0x9E3779B97F4A7C15
    assert keys.key(0) == 0x6E789E6AA1B965F4
    assert keys.key(1, 2, 3) == 0x48CF5028B6DF10DB
    assert [keys.perm(x, 10, keys.key(1)) for x in range(10)] == [0, 5, 8, 7, 4, 1, 6, 3, 9, 2]
    large = [548573, 863490, 372581, 1269080, 25182, 913560, 134103, 1275801]
    assert [keys.perm(x, 1281167, keys.key(7)) for x in range(8)] == large
    assert keys.perm(np.arange(8), 1281167, keys.key(7)).tolist() == large


@given(words)
def test_mix_is_one_function_in_three_forms(values: list[int]) -> None:
    expected = [keys.mix(value) for value in values]
    assert keys.mix(array(values)).tolist() == expected
    assert unsigned(keys.torch_mix(tensor(values))) == expected


@given(words, word)
def test_fold_is_one_function_in_three_forms(values: list[int], last: int) -> None:
    expected = [keys.fold(value, last) for value in values]
    assert keys.fold(array(values), last).tolist() == expected
    assert unsigned(keys.torch_fold(tensor(values), tensor([last]))) == expected
    turned = [keys.fold(last, value) for value in values]
    assert keys.fold(last, array(values)).tolist() == turned
    assert unsigned(keys.torch_fold(tensor([last]), tensor(values))) == turned


@given(words, number)
def test_uniform_is_one_function_in_three_forms(values: list[int], draw: int) -> None:
    expected = [keys.uniform(value, draw) for value in values]
    assert all(0.0 <= u < 1.0 for u in expected)
    assert keys.uniform(array(values), draw).tolist() == expected
    drawn = keys.torch_uniform(tensor(values), draw)
    assert drawn.dtype == torch.float64
    assert drawn.tolist() == expected


@given(st.lists(word, max_size=4), word, words)
def test_a_key_is_folded_word_by_word(head: list[int], last: int, values: list[int]) -> None:
    assert keys.key(*head, last) == keys.fold(keys.key(*head), last)
    assert keys.key(*head, array(values)).tolist() == [keys.key(*head, value) for value in values]


@given(st.lists(word, min_size=2, max_size=4, unique=True))
def test_order_and_number_of_the_words_matter(values: list[int]) -> None:
    assert keys.key(*values) != keys.key(*reversed(values))
    assert keys.key(*values) != keys.key(*values[:-1])
    assert keys.key(*values) != keys.key(*values, 0)


@given(st.integers(1, 700), word)
def test_perm_is_a_permutation_and_one_in_both_forms(n: int, k: int) -> None:
    images = keys.perm(np.arange(n), n, k)
    assert sorted(images.tolist()) == list(range(n))
    assert images.tolist() == [keys.perm(x, n, k) for x in range(n)]


@given(st.data(), st.integers(2, 2**52), word)
def test_perm_of_a_set_of_any_size_stays_inside(data: st.DataObject, n: int, k: int) -> None:
    place = data.draw(st.integers(0, n - 1))
    image = keys.perm(place, n, k)
    assert 0 <= image < n
    assert int(keys.perm(array([place]), n, k)[0]) == image


@given(st.lists(st.tuples(number, word), min_size=1, max_size=20))
def test_each_entry_of_an_array_has_a_permutation_of_its_own(entries: list[tuple[int, int]]) -> None:
    x, n, k = (
        array([size // 2 for size, _ in entries]),
        array([size + 1 for size, _ in entries]),
        array([k for _, k in entries]),
    )
    expected = [keys.perm(size // 2, size + 1, key) for size, key in entries]
    assert keys.perm(x, n, k).tolist() == expected
    assert x.tolist() == [size // 2 for size, _ in entries], "the argument was changed"


@given(word)
def test_signed_keeps_the_bits(value: int) -> None:
    assert -(1 << 63) <= keys.signed(value) < 1 << 63
    assert keys.signed(value) & keys.MASK == value


@pytest.mark.parametrize("words", [(0,), (7, 3), (2**63, 5)])
def test_draws_of_neighbouring_keys_are_uniform_and_unrelated(words: tuple[int, ...]) -> None:
    """Mean, spread and correlation of 20 000 draws within five standard errors."""
    count = 20_000
    first, second = (keys.uniform(keys.key(*words, np.arange(count, dtype=np.uint64)), draw) for draw in (0, 1))
    for drawn in (first, second):
        assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5
        assert np.histogram(drawn, 16, (0, 1))[0].std() < 5 * (count / 16) ** 0.5
    neighbours = np.corrcoef(first[:-1], first[1:])[0, 1]
    assert max(abs(neighbours), abs(np.corrcoef(first, second)[0, 1])) < 5 / count**0.5


@settings(max_examples=30)
@given(st.lists(word, min_size=2, max_size=8, unique=True))
def test_different_keys_shuffle_differently(values: list[int]) -> None:
    orders = [tuple(keys.perm(np.arange(64), 64, value).tolist()) for value in values]
    assert all(a != b for a, b in pairwise(orders))
