"""Classifiers beside a network's own: linear on its pooled features, or fused from three of its stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError
from .cifar import kaiming_fan_out


class LinearHead(nn.Linear):
    """Pooled features [B,width] to logits [B,classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)


class Fusion(nn.ModuleList):
    """Convolution without bias, batch norm, ReLU, bringing a map to ``size`` by the stride that fits best."""

    def __init__(self, inside: int, width: int, kernel: int) -> None:
        super().__init__([nn.Conv2d(inside, width, kernel, bias=False), nn.BatchNorm2d(width)])
        self.padding = kernel // 2

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        strides = [max(1, -(-mine // theirs)) for mine, theirs in zip(x.shape[-2:], size, strict=True)]
        x = functional.conv2d(x, self[0].weight, None, strides, self.padding)  # type: ignore[arg-type]
        if tuple(x.shape[-2:]) != tuple(size):
            x = functional.adaptive_avg_pool2d(x, (size[0], size[1]))
        return functional.relu(self[1](x))


class FusedHead(nn.Module):
    """Three stage maps, from the finest, joined into one at the coarsest resolution and pooled (SHAKE's released head).

    With ``classes`` it ends in a classifier: logits [B,classes]. Without, it gives features [B,width] for a classifier
    that is not its own; where ``width`` is not the last stage's, one more 1x1 convolution brings them to it.
    ``channels``: of the three maps. Raises NetworkError for another number of them.
    """

    def __init__(self, channels: Sequence[int], classes: int | None = None, width: int | None = None) -> None:
        super().__init__()
        if len(channels) != 3:
            raise NetworkError(f"a fused head joins three stages and was given {len(channels)}: name three taps")
        first, second, third = channels
        self.fuse1 = Fusion(first, second, 3)
        self.fuse2 = Fusion(second, second, 1)
        self.fuse3 = Fusion(second, third, 3)
        self.fuse4 = Fusion(third, third, 1)
        self.fuse5 = Fusion(third, third, 3)
        self.fuse6 = None if width in (None, third) else Fusion(third, int(width or 0), 1)
        kaiming_fan_out(self)
        self.classifier = None if classes is None else nn.Linear(width or third, classes)

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        middle, last = second.shape[-2:], third.shape[-2:]
        joined = self.fuse1(first, middle) + self.fuse2(second, middle)
        joined = self.fuse5(self.fuse3(joined, last) + self.fuse4(third, last), last)
        if self.fuse6 is not None:
            joined = self.fuse6(joined, last)
        pooled = torch.mean(joined, (2, 3))
        return pooled if self.classifier is None else self.classifier(pooled)
