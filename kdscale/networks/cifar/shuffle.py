"""``ShuffleV1`` (Zhang et al. 2018, arXiv:1707.01083, 3 groups) and ``ShuffleV2`` (Ma et al. 2018, arXiv:1807.11164, width 1).

As the CIFAR-100 distillation benchmark has them: a 1x1 stem without pooling, and in V1 a ReLU after the depthwise
convolution. ``stageK.pre`` of V2 is the unit's two halves *before* the shuffle, of which only the second is a
pre-activation; its channels have another order than ``stageK``. Weights keep torch's own initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .walk import CifarNetwork, conv1x1

NAMES = ("ShuffleV1", "ShuffleV2")
UNITS = (4, 8, 4)


def build(name: str, classes: int) -> CifarNetwork:
    return ShuffleV1(classes) if name == "ShuffleV1" else ShuffleV2(classes)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel c of group g goes to place c x groups + g."""
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)


def depthwise(width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)


class UnitV1(nn.Module):
    """Answers (output, the map before its ReLU). With stride 2 its pooled input is joined to the branch, else added."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, 1 if inside == 24 else 3
        width = outside - inside if stride == 2 else outside
        inner = width // 4
        self.conv1 = nn.Conv2d(inside, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = depthwise(inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        branch = shuffle(functional.relu(self.bn1(self.conv1(x))), self.groups)
        branch = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(branch)))))
        joined = torch.cat([branch, functional.avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else branch + x
        return functional.relu(joined), joined


class DownUnitV2(nn.Module):
    """Two branches of stride 2 in the place of the halves; answers (output, both before their last ReLU)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        half = outside // 2
        self.conv1, self.bn1 = depthwise(inside, 2), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = conv1x1(inside, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(inside, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = functional.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return shuffle(functional.relu(torch.cat([left, right], 1)), 2), (left, right)


class UnitV2(nn.Module):
    """Leaves half of the channels as they are; answers (output, both halves before the last ReLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv1x1(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = depthwise(half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv1x1(half, half), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        kept, branch = x.chunk(2, 1)
        branch = functional.relu(self.bn1(self.conv1(branch)))
        branch = self.bn3(self.conv3(self.bn2(self.conv2(branch))))
        return shuffle(torch.cat([kept, functional.relu(branch)], 1), 2), (kept, branch)


class ShuffleNet(CifarNetwork):
    """The stem and the names that both versions share."""

    head_name = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)

    def stem(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(images)))


class ShuffleV1(ShuffleNet):
    """Widths 240, 480, 960."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (24, 240, 480, 960)
        for (name,), inside, width, units in zip(self.stages, widths, widths[1:], UNITS, strict=False):
            rest = [UnitV1(width, width, 1) for _ in range(units - 1)]
            self.add_module(name, nn.Sequential(UnitV1(inside, width, 2), *rest))
        self.linear = nn.Linear(widths[-1], classes)


class ShuffleV2(ShuffleNet):
    """Widths 116, 232, 464; 'pooled' is of the 1024 channels of the tail."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (24, 116, 232, 464)
        for (name,), inside, width, units in zip(self.stages, widths, widths[1:], UNITS, strict=False):
            rest = [UnitV2(width) for _ in range(units - 1)]
            self.add_module(name, nn.Sequential(DownUnitV2(inside, width), *rest))
        self.conv2 = conv1x1(widths[-1], 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def before(self, answer: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(answer), 1)

    def tail(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return functional.relu(self.bn2(self.conv2(x))), {}
