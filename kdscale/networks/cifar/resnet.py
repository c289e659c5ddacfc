"""Residual networks with a convolution where a shortcut changes shape: He et al. 2016 (arXiv:1512.03385, section 4.2).

``resnet20`` and its kin have 6n + 2 layers; ``ResNet18``, ``34`` and ``50`` are ImageNet's with a 3x3 stem and no pooling
behind it. The ``okd_`` networks are those of OKDDip (arXiv:1912.00350): its ResNet-110 has bottlenecks, and so has what its
tables call WRN-20-8, which is no wide network of Zagoruyko and Komodakis.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from .walk import CifarNetwork, conv1x1, conv3x3, kaiming_fan_out


class Form(NamedTuple):
    """``inner``, ``outer``: channels in the middle and at the end of a block; these and ``blocks`` a stage each."""

    stem: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False
    shortcut: str = "downsample"
    head: str = "fc"


def basic(widths: tuple[int, int, int, int], blocks: int) -> Form:
    return Form(widths[0], widths[1:], widths[1:], (blocks,) * 3)


def imagenet(outer: tuple[int, ...], blocks: tuple[int, ...]) -> Form:
    inner = (64, 128, 256, 512)
    return Form(64, inner, outer, blocks, bottleneck=outer != inner, shortcut="shortcut", head="linear")


def okd(inner: tuple[int, ...], blocks: int) -> Form:
    return Form(16, inner, (64, 128, 256), (blocks,) * 3, bottleneck=True)


FORMS = {f"resnet{depth}": basic((16, 16, 32, 64), (depth - 2) // 6) for depth in (8, 14, 20, 32, 44, 56, 110)} | {
    "resnet8x2": basic((16, 32, 64, 128), 1),
    "resnet8x4": basic((32, 64, 128, 256), 1),
    "resnet32x4": basic((32, 64, 128, 256), 5),
    "ResNet18": imagenet((64, 128, 256, 512), (2, 2, 2, 2)),
    "ResNet34": imagenet((64, 128, 256, 512), (3, 4, 6, 3)),
    "ResNet50": imagenet((256, 512, 1024, 2048), (3, 4, 6, 3)),
    "okd_resnet32": basic((16, 16, 32, 64), 5),
    "okd_resnet110": okd((16, 32, 64), 12),
    "okd_wrn20_8": okd((128, 256, 512), 2),
}
NAMES = tuple(FORMS)


def build(name: str, classes: int) -> CifarNetwork:
    return ResNet(FORMS[name], classes)


class Residual(nn.Module):
    """A branch and a shortcut; answers (output, the sum before the last ReLU).

    ``drop_block`` does nothing here: a training technique may put a module without parameters in its place.
    """

    shortcut_name: str

    def shorten(self, name: str, inside: int, outside: int, stride: int) -> None:
        """Adds the shortcut. It comes last, for the order of a file's modules is the order in which weights are drawn."""
        self.shortcut_name = name
        same = stride == 1 and inside == outside
        projection = () if same else (conv1x1(inside, outside, stride), nn.BatchNorm2d(outside))
        self.add_module(name, nn.Sequential(*projection))
        self.drop_block: nn.Module = nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = self.drop_block(self.branch(x)) + self.get_submodule(self.shortcut_name)(x)
        return functional.relu(total), total


class BasicBlock(Residual):
    """Two 3x3 convolutions."""

    def __init__(self, inside: int, inner: int, outside: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(inside, inner, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, outside)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shorten(shortcut, inside, outside, stride)

    def branch(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        normed: Tensor = self.bn2(self.conv2(x))
        return normed


class Bottleneck(Residual):
    """1x1, 3x3 with the stride, 1x1."""

    def __init__(self, inside: int, inner: int, outside: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv1x1(inside, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outside)
        self.bn3 = nn.BatchNorm2d(outside)
        self.shorten(shortcut, inside, outside, stride)

    def branch(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        normed: Tensor = self.bn3(self.conv3(x))
        return normed


class ResNet(CifarNetwork):
    """Every stage but the first halves the map."""

    def __init__(self, form: Form, classes: int) -> None:
        super().__init__()
        self.stages = tuple((f"layer{number}",) for number in range(1, 1 + len(form.blocks)))
        self.head_name = form.head
        block = Bottleneck if form.bottleneck else BasicBlock
        self.conv1 = conv3x3(3, form.stem)
        self.bn1 = nn.BatchNorm2d(form.stem)
        inside = form.stem
        for (name,), inner, outer, count in zip(self.stages, form.inner, form.outer, form.blocks, strict=True):
            first = block(inside, inner, outer, 1 if name == "layer1" else 2, form.shortcut)
            rest = [block(outer, inner, outer, 1, form.shortcut) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            inside = outer
        self.add_module(form.head, nn.Linear(inside, classes))
        kaiming_fan_out(self)

    def stem(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(images)))
