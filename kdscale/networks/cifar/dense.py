"""Densely connected networks with bottlenecks and half compression: Huang et al. 2017 (arXiv:1608.06993).

``cifar_densenet121`` is ImageNet's with a bare 3x3 stem; ``okd_densenet40_12`` is the one of OKDDip (arXiv:1912.00350). A
stage's tap is all that its block has joined, its own ``.pre``; that of the last comes after the last norm and ReLU, which
are the tail. Modules have torchvision's names.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .walk import CifarNetwork, conv1x1, conv3x3


class Form(NamedTuple):
    """``layers``: of each block."""

    stem: int
    growth: int
    layers: tuple[int, ...]


FORMS = {"cifar_densenet121": Form(64, 32, (6, 12, 24, 16)), "okd_densenet40_12": Form(24, 12, (6, 6, 6))}
NAMES = tuple(FORMS)


def build(name: str, classes: int) -> CifarNetwork:
    return DenseNet(FORMS[name], classes)


class DenseLayer(nn.Module):
    """Joins ``growth`` new channels to its input; the inner width is four times that."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = conv1x1(inside, 4 * growth)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        new = self.conv1(functional.relu(self.norm1(x)))
        new = self.conv2(functional.relu(self.norm2(new)))
        joined = torch.cat([x, new], 1)
        return joined, joined


class Transition(nn.Module):
    """Halves the channels and the map."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inside)
        self.conv = conv1x1(inside, inside // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class DenseNet(CifarNetwork):
    """A block is a single layer here; a transition belongs to the stage that it leads to."""

    head_name = "classifier"

    def __init__(self, form: Form, classes: int) -> None:
        super().__init__()
        last = len(form.layers)
        self.stages = tuple((f"features.denseblock{number}",) for number in range(1, last + 1))
        parts: dict[str, nn.Module] = {"conv0": conv3x3(3, form.stem)}
        width = form.stem
        for number, layers in enumerate(form.layers, 1):
            places = range(layers)
            block = {f"denselayer{place + 1}": DenseLayer(width + place * form.growth, form.growth) for place in places}
            parts[f"denseblock{number}"] = nn.ModuleDict(block)
            width += layers * form.growth
            if number < last:
                parts[f"transition{number}"] = Transition(width)
                width //= 2
        parts[f"norm{last + 1}"] = nn.BatchNorm2d(width)
        self.features = nn.ModuleDict(parts)
        self.classifier = nn.Linear(width, classes)
        initialise(self)

    def stem(self, images: Tensor) -> Tensor:
        out: Tensor = self.features["conv0"](images)
        return out

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self.features[f"transition{stage - 1}"](x) if stage > 1 else x

    def tail(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        last = len(self.stages)
        normed = self.features[f"norm{last + 1}"](x)
        active = functional.relu(normed)
        return active, {f"stage{last}": active, f"stage{last}.pre": normed}


@torch.no_grad()
def initialise(network: DenseNet) -> None:
    """Normal convolution weights of variance 2 / fan-in (He et al. 2015), no bias in the classifier."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.zeros_(network.classifier.bias)
