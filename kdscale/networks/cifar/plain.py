"""``cnn6``: a plain stack of convolutions, of no paper, small enough for a first try on any machine."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .walk import CifarNetwork, conv3x3, kaiming_fan_out

WIDTHS = {"cnn6": (32, 32, 64, 64, 128, 128)}
NAMES = tuple(WIDTHS)


def build(name: str, classes: int) -> CifarNetwork:
    return PlainCNN(WIDTHS[name], classes)


class Unit(nn.Module):
    """3x3 convolution, norm, ReLU; answers (output, the map before the ReLU)."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = conv3x3(inside, width, stride)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.bn(self.conv(x))
        return functional.relu(normed), normed


class PlainCNN(CifarNetwork):
    """Six units, every second of stride 2; the first is the stem."""

    def __init__(self, widths: tuple[int, int, int, int, int, int], classes: int) -> None:
        super().__init__()
        a, b, c, d, e, f = widths
        self.first = Unit(3, a, 1)
        self.layer1 = nn.Sequential(Unit(a, b, 2))
        self.layer2 = nn.Sequential(Unit(b, c, 1), Unit(c, d, 2))
        self.layer3 = nn.Sequential(Unit(d, e, 1), Unit(e, f, 2))
        self.fc = nn.Linear(f, classes)
        kaiming_fan_out(self)

    def stem(self, images: Tensor) -> Tensor:
        out: Tensor = self.first(images)[0]
        return out
