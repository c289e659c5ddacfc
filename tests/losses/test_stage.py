from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdscale.losses.stage import resized, stage_distance


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_reductions_differ_in_scale_alone() -> None:
    a, b = maps(0, 4, 3, 5, 2), maps(1, 4, 3, 5, 2)
    squares = (a - b) ** 2
    assert torch.allclose(stage_distance(a, b), squares.mean((1, 2, 3)))
    assert torch.allclose(stage_distance(a, b, "channel_sum"), squares.sum(1).mean((1, 2)))
    assert torch.allclose(stage_distance(a, b, "batch_sum"), squares.sum((1, 2, 3)))


def test_tokens_have_their_channels_in_the_same_place() -> None:
    a, b = maps(0, 4, 3, 10), maps(1, 4, 3, 10)
    assert torch.allclose(stage_distance(a, b, "channel_sum"), ((a - b) ** 2).sum(1).mean(1))


def test_it_is_zero_of_equal_maps_and_float32_of_half_ones() -> None:
    a = maps(0, 2, 3, 4, 4).bfloat16()
    assert not stage_distance(a, a).any()
    assert stage_distance(a, 1 + a).dtype == torch.float32


def test_both_ways_of_resizing_agree_at_half_the_size_and_leave_an_equal_one_alone() -> None:
    x = maps(0, 2, 3, 8, 6)
    assert torch.allclose(resized(x, (4, 3)), resized(x, (4, 3), "avgpool"))
    assert not torch.allclose(resized(x, (5, 4)), resized(x, (5, 4), "avgpool"))
    assert resized(x, (8, 6), "avgpool") is x


def test_bilinear_does_not_hold_the_corners() -> None:
    corner = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert resized(corner, (4, 4))[0, 0, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
