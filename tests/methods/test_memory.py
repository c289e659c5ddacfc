from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdscale import keys
from kdscale.errors import RecipeError
from kdscale.methods.memory import BLOCK, Negatives, drawn_memory
from kdscale.types import DatasetInfo

from .small import NORMALISATION

KEY = torch.tensor(99)


def info(labels: list[int] | None, samples: int | None = None) -> DatasetInfo:
    array = None if labels is None else np.array(labels, dtype=np.int32)
    count = samples or len(labels or ())
    return DatasetInfo("drawn", count, max(labels or [0]) + 1, array, *NORMALISATION, 32)


def unequal(samples: int = 300) -> list[int]:
    return np.random.default_rng(0).choice(5, samples, p=[0.1, 0.15, 0.2, 0.25, 0.3]).tolist()


def drawn(data: DatasetInfo, count: int, rows: int = 40, relax: bool = False, key: Tensor = KEY) -> tuple[Tensor, Tensor]:
    """(sample numbers, their contrast), for ``rows`` samples."""
    index = torch.arange(rows) * 7 % data.samples
    return index, Negatives(data, count, relax)(key, index, torch.arange(rows) + 1000)


@pytest.mark.parametrize("count", [1, 50, 200, 299, 1000])
def test_negatives_are_of_other_classes_and_differ_while_they_can(count: int) -> None:
    labels = torch.tensor(unequal())
    index, contrast = drawn(info(labels.tolist()), count)
    assert contrast.shape == (40, count + 1)
    assert torch.equal(contrast[:, 0], index)
    assert (labels[contrast[:, 1:]] != labels[index][:, None]).all()
    if count + int(labels.bincount().max()) <= len(labels):
        assert all(len(set(row)) == count for row in contrast[:, 1:].tolist())


def test_as_many_as_there_are_of_other_classes() -> None:
    labels = [0] * 10 + [1] * 10
    index, contrast = drawn(info(labels), 10, rows=20)
    for sample, row in zip(index.tolist(), contrast[:, 1:].tolist(), strict=True):
        assert sorted(row) == (list(range(10, 20)) if sample < 10 else list(range(10)))


@pytest.mark.parametrize("count", [60, 1000], ids=["without replacement", "with replacement"])
def test_every_other_sample_is_as_likely(count: int) -> None:
    labels = torch.tensor(unequal(200))
    data = info(labels.tolist())
    negatives = Negatives(data, count, False)
    index = torch.full((8,), 3)
    counts = torch.zeros(200)
    for step in range(100):
        contrast = negatives(torch.tensor(keys.signed(keys.key(5, step))), index, torch.arange(8) + 8 * step)
        counts += torch.bincount(contrast[:, 1:].flatten(), minlength=200)
    others = counts[labels != labels[3]]
    expected = 800 * count / len(others)
    assert counts[labels == labels[3]].sum() == 0
    assert others.sum() == 800 * count
    assert (others / expected - 1).abs().max() < 6 / expected**0.5 + 0.05


def test_two_samples_share_as_many_as_by_chance() -> None:
    """Their sets are stretches of one shuffle, from places that have nothing to do with one another."""
    data, rows = info(None, 1000), 64
    shared = []
    for step in range(20):
        _, contrast = drawn(data, 300, rows, key=torch.tensor(keys.signed(keys.key(3, step))))
        member = torch.zeros(rows, 1000).scatter_(1, contrast[:, 1:], 1.0)
        both = member @ member.T
        shared.append((both.sum() - both.diagonal().sum()) / (rows * (rows - 1)))
    assert float(torch.stack(shared).mean()) == pytest.approx(300 * 300 / 1000, rel=0.05)


def test_a_draw_depends_on_the_key_and_the_position_alone() -> None:
    negatives = Negatives(info(unequal()), 50, False)
    index, position = torch.arange(10), torch.arange(10) + 30
    whole = negatives(KEY, index, position)
    assert torch.equal(torch.cat([negatives(KEY, index[p::3], position[p::3]) for p in range(3)]).sort(0).values,
                       whole.sort(0).values)  # fmt: skip
    assert torch.equal(negatives(KEY, index[4:5], position[4:5]), whole[4:5])
    assert not torch.equal(negatives(KEY + 1, index, position), whole)
    assert not torch.equal(negatives(KEY, index, position + 1), whole)


def test_a_relaxed_positive_is_any_of_the_class() -> None:
    labels = torch.tensor(unequal())
    data = info(labels.tolist())
    index = torch.full((500,), 11)
    contrast = Negatives(data, 20, True)(KEY, index, torch.arange(500))
    assert (labels[contrast[:, 0]] == labels[11]).all()
    assert len(contrast[:, 0].unique()) > 0.9 * int((labels == labels[11]).sum())


def test_without_labels_every_other_sample_is_a_negative() -> None:
    index, contrast = drawn(info(None, 50), 49)
    assert all(sorted(row) == list(range(50)) for row in contrast.tolist())
    assert torch.equal(contrast[:, 0], index)


def test_a_set_of_one_class_has_no_negatives() -> None:
    with pytest.raises(RecipeError, match="all 7 samples are of one class"):
        Negatives(info([0] * 7), 5, False)


def test_data_that_are_not_here_have_no_samples_yet() -> None:
    assert Negatives(DatasetInfo("", 0, 10, None, *NORMALISATION, 32), 5, False).largest == 0
    assert drawn_memory(0, 128, keys.key(1)).shape == (0, 128)


def test_a_memory_is_drawn_from_its_key_alone() -> None:
    memory = drawn_memory(BLOCK // 128 + 3, 128, keys.key(1, 2))
    assert memory.dtype == torch.float32
    assert float(memory.abs().max()) <= (3 / 128) ** 0.5
    assert float(memory.std()) == pytest.approx(128**-0.5, rel=1e-2)
    assert float(memory.mean()) == pytest.approx(0, abs=1e-3)
    assert torch.equal(drawn_memory(5, 128, keys.key(1, 2)), memory[:5])
    assert not torch.equal(drawn_memory(5, 128, keys.key(1, 3)), memory[:5])
    number = 128 * 4 + 17
    assert float(memory[4, 17]) == pytest.approx((2 * keys.uniform(keys.key(1, 2), number) - 1) * (3 / 128) ** 0.5)
