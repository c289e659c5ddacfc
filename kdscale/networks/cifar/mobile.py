"""``MobileNetV2`` at half width: Sandler et al. 2018 (arXiv:1801.04381), as the CIFAR-100 distillation benchmark has it.

Other than the paper's: plain ReLU, a first group that keeps its 1x1 convolution though it expands nothing, and widths cut to
whole numbers, not rounded to multiples of 8. A block ends without activation, so a stage's tap is its own ``.pre``.
"""

from __future__ import annotations

from torch import Tensor, nn

from .walk import CifarNetwork, conv1x1, conv3x3, kaiming_fan_out, narrow_linears

NAMES = ("MobileNetV2",)
GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""(expansion, width, blocks, first stride)"""


def build(name: str, classes: int) -> CifarNetwork:
    return MobileNetV2(classes)


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down; added to its input where both have one shape."""

    def __init__(self, inside: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inside * expansion
        self.adds = stride == 1 and inside == width
        self.conv = nn.Sequential(
            conv1x1(inside, inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            conv1x1(inner, width),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = x + self.conv(x) if self.adds else self.conv(x)
        return out, out


class MobileNetV2(CifarNetwork):
    """Seven groups in four stages; 'pooled' is of the 1280 channels of the tail."""

    stages = (("blocks.0", "blocks.1"), ("blocks.2",), ("blocks.3", "blocks.4"), ("blocks.5", "blocks.6"))
    head_name = "classifier.0"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv3x3(3, 16, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList()
        inside = 16
        for expansion, width, count, stride in GROUPS:
            first = InvertedResidual(inside, width, expansion, stride)
            rest = [InvertedResidual(width, width, expansion, 1) for _ in range(count - 1)]
            self.blocks.append(nn.Sequential(first, *rest))
            inside = width
        self.conv2 = nn.Sequential(conv1x1(160, 1280), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, classes))
        kaiming_fan_out(self)
        narrow_linears(self)

    def stem(self, images: Tensor) -> Tensor:
        out: Tensor = self.conv1(images)
        return out

    def tail(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.conv2(x), {}
