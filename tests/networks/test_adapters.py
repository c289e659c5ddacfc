from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale.errors import NetworkError
from kdscale.networks.adapters import Regressor


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (3, 3)),
        ((4, 4, 4), (6, 8, 8), nn.ConvTranspose2d, (4, 4)),
        ((4, 4, 4), (6, 4, 4), nn.Conv2d, (1, 1)),
        ((4, 7, 7), (6, 5, 5), nn.Conv2d, (3, 3)),
        ((4, 2, 2), (6, 1, 1), nn.Conv2d, (3, 3)),  # twice the side goes before any other rule
    ],
)
def test_the_convolution_follows_the_sides(
    student: tuple[int, ...], teacher: tuple[int, ...], kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    regressor = Regressor(student, teacher)
    assert type(regressor.conv) is kind
    assert regressor.conv.kernel_size == kernel
    assert regressor(torch.randn(2, *student)).shape == (2, *teacher)
    assert sum(p.numel() for p in regressor.parameters()) == kernel[0] * kernel[1] * student[0] * teacher[0] + 3 * teacher[0]


def test_only_with_relu_is_nothing_negative() -> None:
    x = torch.randn(4, 3, 4, 4)
    assert (Regressor((3, 4, 4), (5, 4, 4))(x) >= 0).all()
    assert (Regressor((3, 4, 4), (5, 4, 4), relu=False)(x) < 0).any()


@pytest.mark.parametrize(
    ("student", "teacher", "told"),
    [
        ((4, 4, 4), (6, 16, 16), "no regressor brings a map of 4x4 to 16x16"),
        ((4, 5, 3), (6, 4, 4), "no regressor brings a map of 5x3 to 4x4"),
        ((64,), (6, 4, 4), r"between maps \[C,H,W\]"),
    ],
)
def test_maps_that_cannot_be_matched(student: tuple[int, ...], teacher: tuple[int, ...], told: str) -> None:
    with pytest.raises(NetworkError, match=told):
        Regressor(student, teacher)
