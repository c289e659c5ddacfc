"""Wide residual networks of 6n + 4 layers: Zagoruyko and Komodakis 2016 (arXiv:1605.07146). ``wrn_DEPTH_WIDTH``.

A stage's tap is the raw sum, with neither norm nor ReLU; the map before an activation is what the *next* norm makes of it.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional

from .walk import CifarNetwork, conv1x1, conv3x3, kaiming_fan_out

NAMES = ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")
"""Of the benchmark; any other depth 6n + 4 and width will do."""


def sizes(name: str) -> tuple[int, int] | None:
    """(blocks a stage, width factor), where ``name`` says such a network."""
    match = re.fullmatch(r"wrn_(\d+)_(\d+)", name)
    depth, factor = (int(match[1]), int(match[2])) if match else (0, 0)
    return ((depth - 4) // 6, factor) if depth % 6 == 4 and depth > 4 and factor > 0 else None


def build(name: str, classes: int) -> CifarNetwork:
    found = sizes(name)
    if found is None:
        raise ValueError(f"there is no wide residual network {name!r}")
    return WideResNet(*found, classes)


class WideBlock(nn.Module):
    """Norm and ReLU before each convolution; answers (raw sum, its input after the first norm).

    Where the width changes, the shortcut is a bare convolution of the activated input. ``drop_block`` does nothing here: a
    training technique may put a module without parameters in its place.
    """

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = conv3x3(inside, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.convShortcut = conv1x1(inside, width, stride) if inside != width else None
        self.drop_block: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.bn1(x)
        active = functional.relu(normed)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        branch = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return shortcut + self.drop_block(branch), normed


class Layer(nn.Module):
    """Blocks under the name ``layer``, as the benchmark's files have them."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)


class WideResNet(CifarNetwork):
    """``factor`` times as wide as 16, 32, 64; the last norm and ReLU are its tail."""

    stages = (("block1.layer",), ("block2.layer",), ("block3.layer",))
    pre_activation = True

    def __init__(self, blocks: int, factor: int, classes: int) -> None:
        super().__init__()
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        self.conv1 = conv3x3(3, 16)
        for name, inside, width, stride in zip(("block1", "block2", "block3"), widths, widths[1:], (1, 2, 2), strict=False):
            rest = [WideBlock(width, width, 1) for _ in range(blocks - 1)]
            self.add_module(name, Layer(WideBlock(inside, width, stride), *rest))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        kaiming_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def stem(self, images: Tensor) -> Tensor:
        out: Tensor = self.conv1(images)
        return out

    def tail(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        normed = self.bn1(x)
        return functional.relu(normed), {"stage3.pre": normed}
