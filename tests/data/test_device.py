"""Normalising and erasing on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdscale.data.device import Finish, cut_out, erase, mark_erased, noise
from kdscale.data.table import Column
from kdscale.keys import key
from kdscale.recipe.data import Augment
from kdscale.types import DatasetInfo

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def boxed(boxes: list[list[int]]) -> torch.Tensor:
    table = torch.zeros(len(boxes), Column.BOXES + len(boxes[0]), dtype=torch.int64)
    table[:, Column.BOXES :] = torch.tensor(boxes)
    table[:, Column.KEY] = torch.arange(len(boxes)) * 7 - 3
    table[:, Column.VALID] = 1
    return table


def test_normalisation_and_layout() -> None:
    info = DatasetInfo("", 1, 2, None, MEAN, STD, 4)
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    batch = Finish(info, torch.device("cpu"), None, 2)(images, boxed([[], []]), False, 0, (0, 0))
    expected = (images.permute(0, 3, 1, 2) / 255.0 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(batch.images, expected, atol=1e-5)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets is None
    assert batch.normalisation == (MEAN, STD)


def test_smoothing_alone_gives_targets() -> None:
    info = DatasetInfo("", 1, 4, None, MEAN, STD, 4)
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    batch = Finish(info, torch.device("cpu"), Augment(smoothing=0.2), 4)(images, boxed([[]]), False, 0, (0, 0))
    assert batch.targets is not None
    assert torch.allclose(batch.targets, torch.tensor([[0.85, 0.05, 0.05, 0.05]]))


def test_cutout_is_one_square_that_the_border_clips() -> None:
    """Every pixel is as often a middle; what lies outside is lost, so the covered area varies."""
    keys = torch.from_numpy(key(2, np.arange(20_000, dtype=np.uint64)).view(np.int64))
    images = torch.ones(len(keys), 3, 16, 16)
    cut_out(images, keys, 4)
    covered = images[:, 0] == 0
    assert torch.equal(images == 0, covered[:, None].expand_as(images))
    rows, columns = covered.any(2), covered.any(1)
    assert torch.equal(covered, rows[:, :, None] & columns[:, None, :])
    sides = rows.sum(1)
    assert sides.unique().tolist() == [2, 3, 4]
    last = 15 - rows.flip(1).int().argmax(1)  # the middle is the third of four
    assert (rows.int().argmax(1) <= last).all()
    share = covered.float().mean(0)
    assert abs(float(share[8, 8]) - (4 / 16) ** 2) < 0.006
    assert abs(float(share[0, 0]) - (2 + 1) ** 2 / 256) < 0.006
    again = torch.ones(1, 3, 16, 16)
    cut_out(again, keys[77:78], 4)
    assert torch.equal(again[0], images[77])


def test_an_odd_cutout_has_its_side() -> None:
    images = torch.ones(64, 3, 32, 32)
    cut_out(images, torch.arange(64), 5)
    assert (images[:, 0] == 0).sum((1, 2)).max() == 25


def test_cutout_fills_with_the_mean_colour() -> None:
    info = DatasetInfo("", 1, 2, None, MEAN, STD, 8)
    images, table = torch.full((2, 8, 8, 3), 255, dtype=torch.uint8), boxed([[], []])
    batch = Finish(info, torch.device("cpu"), Augment(cutout=4), 2)(images, table, False, 0, (0, 0))
    values = sorted(batch.images[0, 0].unique().tolist())
    assert values == pytest.approx([0.0, (1 - MEAN[0]) / STD[0]], abs=1e-5)


def test_the_policy_leaves_samples_alone_that_do_not_count() -> None:
    info = DatasetInfo("", 1, 2, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 8)
    images, table = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8), boxed([[]] * 64)
    table[::2, Column.VALID] = 0
    finish = Finish(info, torch.device("cpu"), Augment(policy="autoaugment-cifar10"), 2)
    batch = finish(images, table, False, 0, (0, 0))
    same = (batch.images * 255).round().byte().permute(0, 2, 3, 1).eq(images).flatten(1).all(1)
    assert same[::2].all()
    assert same[1::2].sum() < 16
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["const", "mean", "pixel"])
def test_exactly_the_boxes_are_erased(mode: str) -> None:
    boxes = [[0, 0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0], [0, 0, 8, 1, 5, 5, 3, 3]]
    table, images = boxed(boxes), torch.randn(3, 3, 8, 8) + 10
    before = images.clone()
    erased, largest = mark_erased(table)
    assert (erased, largest) == (2, (8, 4))
    erase(images, table, erased, largest, mode)
    changed = (images != before).any(1)
    expected = torch.zeros(3, 8, 8, dtype=torch.bool)
    expected[1, 1:4, 2:6] = expected[2, :, :1] = expected[2, 5:, 5:] = True
    assert torch.equal(changed, expected)
    if mode == "const":
        assert (images[:, 0][expected] == 0).all()
    if mode == "mean":
        assert torch.allclose(images[1, :, 1, 2], before[1].mean((1, 2)))


def test_noise_is_normal_and_depends_on_key_and_pixel_alone() -> None:
    value = noise(torch.tensor(5), torch.arange(200_000))
    assert abs(value.mean().item()) < 0.01
    assert abs(value.std().item() - 1) < 0.01
    assert torch.equal(value[:100], noise(torch.tensor(5), torch.arange(100)))
    assert not torch.equal(value[:100], noise(torch.tensor(6), torch.arange(100)))
