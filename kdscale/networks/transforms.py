"""Feature transforms: a map of one network brought to the shape that a block of another one takes (SFTN, NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from ..errors import NetworkError

Size = tuple[int, ...]
Convolution = Callable[[int, int], nn.Module]

SAME: Convolution = partial(nn.Conv2d, kernel_size=1)
HALVE: Convolution = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)  # an odd side is rounded up
DOUBLE: Convolution = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)


class Transform(nn.Sequential):
    """Maps [B, *given] to [B, *wanted], both [D,H,W]: one convolution with bias, then batch norm and ReLU unless ``norm=False``.

    1x1 where the sizes agree, 3x3 of stride 2 where the map is twice as large, 4x4 transposed of stride 2 where it is half as
    large. Any further factor of 2 is one more such step, all of them ``wanted`` wide. Raises NetworkError for a size that
    halving or doubling does not reach.
    """

    def __init__(self, given: Sequence[int], wanted: Sequence[int], norm: bool = True) -> None:
        layers: list[nn.Module] = []
        inside, width = given[0], wanted[0]
        for convolution in resizing(tuple(given[1:]), tuple(wanted[1:])):
            layers.append(convolution(inside, width))
            if norm:
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
            inside = width
        super().__init__(*layers)


def resizing(size: Size, wanted: Size) -> list[Convolution]:
    """The convolutions, in order, that bring a map of ``size`` (H, W) to ``wanted``."""
    if size == wanted:
        return [SAME]
    halves, reached = size[0] > wanted[0], size
    steps: list[Convolution] = []
    while all(n > m if halves else n < m for n, m in zip(reached, wanted, strict=True)):
        reached = tuple(-(-n // 2) if halves else 2 * n for n in reached)
        steps.append(HALVE if halves else DOUBLE)
    if reached != wanted:
        sides = ["x".join(map(str, shape)) for shape in (size, wanted)]
        raise NetworkError(
            f"a map of {sides[0]} cannot be brought to {sides[1]} by halving or doubling: take networks whose maps differ by"
            " factors of 2"
        )
    return steps
