"""Networks for small images, in one file that needs torch alone: an export carries it as it stands.

``resnet20`` and its kin are He et al. 2016 (arXiv:1512.03385, section 4.2) with a convolution where a shortcut changes
shape; ``wrn_16_2`` is Zagoruyko and Komodakis 2016 (arXiv:1605.07146); ``cnn6`` is a plain stack. Modules have the names of
the usual CIFAR-100 distillation benchmark, so that its weights load. A block answers with a pair: its output, and the map
before an activation that methods read: of its own output in a ResNet, of its *input* in a WRN, whose blocks begin with
their norm. Images [B,3,H,W] of any size from 8 pixels on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

RESNETS = {f"resnet{depth}": ((16, 16, 32, 64), (depth - 2) // 6) for depth in (8, 14, 20, 32, 44, 56, 110)} | {
    "resnet8x2": ((16, 32, 64, 128), 1),
    "resnet8x4": ((32, 64, 128, 256), 1),
    "resnet32x4": ((32, 64, 128, 256), 5),
}
NAMES = (*RESNETS, "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", "cnn6")
WRN = re.compile(r"wrn_(\d+)_(\d+)")


def known(name: str) -> bool:
    """Whether :func:`build` knows ``name``: one of ``NAMES``, or any ``wrn_DEPTH_WIDTH`` of depth 6n + 4."""
    match = WRN.fullmatch(name)
    return name in NAMES or (match is not None and int(match[1]) % 6 == 4 and int(match[1]) > 4 and int(match[2]) > 0)


def build(name: str, classes: int) -> CifarNetwork:
    """The network with fresh weights, drawn from torch's generator. Raises ValueError for a name that is not known."""
    if not known(name):
        raise ValueError(f"there is no CIFAR network {name!r}")
    if name in RESNETS:
        widths, blocks = RESNETS[name]
        return ResNet(widths, blocks, classes)
    if name == "cnn6":
        return PlainCNN((32, 32, 64, 64, 128, 128), classes)
    depth, factor = (int(number) for number in WRN.fullmatch(name).groups())  # type: ignore[union-attr]
    return WideResNet((depth - 4) // 6, factor, classes)


class CifarNetwork(nn.Module):
    """Stem, three stages of blocks, and a linear classifier ``fc`` on the pooled map."""

    fc: nn.Linear
    stage_names: tuple[str, str, str] = ("layer1", "layer2", "layer3")
    pre_activation = False  # whether a block's second answer belongs to its input

    def stem(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def stage(self, number: int) -> Sequence[nn.Module]:
        """The blocks of stage ``number``, counted from 1."""
        return list(self.get_submodule(self.stage_names[number - 1]).children())

    def tail(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What follows the last block, and the map before its activation where it has one."""
        return x, None

    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """Names of the blocks, grouped by stage; the stem goes with the first and the tail with the last."""
        return tuple(
            tuple(f"{name}.{place}" for place in range(len(self.stage(number))))
            for number, name in enumerate(self.stage_names, 1)
        )

    def blocks(self) -> Iterator[tuple[int, bool, bool, nn.Module]]:
        """(stage, whether its first, whether its last, block) in order."""
        for number in range(1, 1 + len(self.stage_names)):
            blocks = self.stage(number)
            for place, block in enumerate(blocks):
                yield number, place == 0, place == len(blocks) - 1, block

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,C]."""
        return self.walk(images)[0]

    def walk(
        self, x: Tensor, taps: Sequence[str] = (), first: int = 0, stop: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs blocks ``first`` to ``stop`` (not included) of all; (logits or the last map, taps).

        ``x`` is images where ``first`` is 0. The logits come where ``stop`` is None, after whatever blocks are left.
        """
        taken: dict[str, Tensor] = {}

        def offer(name: str, tensor: Tensor | None) -> None:
            if name in taps and tensor is not None:
                taken[name] = tensor

        blocks = list(self.blocks())
        if first == 0:
            x = self.stem(x)
            offer("stem", x)
        for stage, opens, closes, block in blocks[first:stop]:
            x, before = block(x)
            if self.pre_activation and opens:
                offer(f"stage{stage - 1}.pre", before)
            if closes:
                offer(f"stage{stage}", x)
                if not self.pre_activation:
                    offer(f"stage{stage}.pre", before)
        if first < len(blocks) and stop in (None, len(blocks)):
            x, before = self.tail(x)
            offer(f"stage{len(self.stage_names)}.pre", before)
        if stop is not None:
            return x, taken
        pooled = x.mean((2, 3))
        offer("pooled", pooled)
        return self.fc(pooled), taken


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; answers (output, the sum before the last ReLU)."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inside, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != width:
            self.downsample = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        total = self.bn2(self.conv2(x)) + shortcut
        return functional.relu(total), total


class ResNet(CifarNetwork):
    """6n + 2 layers. ``widths``: of the stem and the three stages; ``blocks``: n."""

    def __init__(self, widths: tuple[int, int, int, int], blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        for name, inside, width, stride in zip(self.stage_names, widths, widths[1:], (1, 2, 2), strict=False):
            rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(BasicBlock(inside, width, stride), *rest))
        self.fc = nn.Linear(widths[3], classes)
        kaiming_fan_out(self)

    def stem(self, images: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(images)))


class WideBlock(nn.Module):
    """Norm and ReLU before each convolution; answers (raw sum, its input after the first norm).

    Where the width changes, the shortcut is a bare convolution of the activated input.
    """

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = conv3x3(inside, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.convShortcut = nn.Conv2d(inside, width, 1, stride, bias=False) if inside != width else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.bn1(x)
        active = functional.relu(normed)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(functional.relu(self.bn2(self.conv1(active)))), normed


class Layer(nn.Module):
    """Blocks under the name ``layer``, as the benchmark's files have them."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)


class WideResNet(CifarNetwork):
    """6n + 4 layers, ``factor`` times as wide as 16, 32, 64; the last norm and ReLU are its tail."""

    stage_names = ("block1.layer", "block2.layer", "block3.layer")
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

    def tail(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.bn1(x)
        return functional.relu(normed), normed


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


def conv3x3(inside: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, width, 3, stride, 1, bias=False)


@torch.no_grad()
def kaiming_fan_out(network: nn.Module) -> None:
    """Normal convolution weights of variance 2 / (k k width) (He et al. 2015); norms and the classifier keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
