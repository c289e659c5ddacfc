"""Maps meet the shape that is asked for, by the fewest convolutions of stride 2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale.errors import NetworkError
from kdscale.networks.transforms import Transform

Shape = tuple[int, int, int]


def convolutions(transform: Transform) -> list[nn.Module]:
    return [layer for layer in transform if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("given", "wanted", "kernels"),
    [
        ((6, 8, 8), (4, 8, 8), [1]),
        ((6, 8, 8), (4, 4, 4), [3]),
        ((6, 7, 7), (4, 4, 4), [3]),
        ((6, 32, 16), (4, 8, 4), [3, 3]),
        ((6, 28, 28), (4, 4, 4), [3, 3, 3]),
        ((6, 4, 4), (4, 8, 8), [4]),
        ((6, 4, 4), (4, 16, 16), [4, 4]),
    ],
)
def test_a_map_gets_the_shape_that_is_asked_for(given: Shape, wanted: Shape, kernels: list[int], norm: bool) -> None:
    transform = Transform(given, wanted, norm)
    out = transform(torch.randn(2, *given))
    assert tuple(out.shape[1:]) == wanted
    assert [layer.kernel_size[0] for layer in convolutions(transform)] == kernels
    assert all(layer.bias is not None for layer in convolutions(transform))
    assert bool((out < 0).any()) != norm
    assert len(transform) == len(kernels) * (3 if norm else 1)


@pytest.mark.parametrize(("given", "wanted"), [((7, 7), (3, 3)), ((7, 7), (10, 10)), ((8, 8), (4, 8)), ((4, 8), (8, 4))])
def test_a_size_that_is_no_power_of_two_away_says_so(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    with pytest.raises(NetworkError, match=f"a map of {given[0]}x{given[1]} cannot be brought to {wanted[0]}x{wanted[1]}"):
        Transform((3, *given), (3, *wanted))
