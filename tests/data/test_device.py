"""Normalising and erasing on the device."""

from __future__ import annotations

import pytest
import torch

from kdscale.data.device import Finish, erase, mark_erased, noise
from kdscale.data.table import Column
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
