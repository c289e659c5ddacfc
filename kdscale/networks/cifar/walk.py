"""The walk through a network for small images: stem, stages of blocks, tail, classifier; whole or in spans of blocks.

A block answers with a pair: its output, and the map before an activation that methods read: of its own output in most
families, of its *input* in one whose blocks begin with their norm. Images [B,3,H,W] of any size from 8 pixels on, unless a
family says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """``stages``: of each, the names of the modules whose children are its blocks; ``head_name``: of the classifier."""

    stages: tuple[tuple[str, ...], ...] = (("layer1",), ("layer2",), ("layer3",))
    head_name = "fc"
    pre_activation = False  # whether a block's second answer belongs to its input

    def stem(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def enter(self, stage: int, x: Tensor) -> Tensor:
        """What lies between a stage's tap and the first block of the next one, ``stage`` (counted from 1)."""
        return x

    def before(self, answer: Any) -> Tensor:
        """The map before the activation, from a block's second answer."""
        normed: Tensor = answer
        return normed

    def tail(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What follows the last block, and the taps that are read there."""
        return x, {}

    @property
    def head(self) -> nn.Module:
        """The classifier, which maps 'pooled' to logits."""
        return self.get_submodule(self.head_name)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all maps that :meth:`walk` can hand out."""
        stages = tuple(f"stage{number}" for number in range(1, 1 + len(self.stages)))
        return ("stem", *stages, *(f"{stage}.pre" for stage in stages), "pooled")

    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """Names of the blocks, grouped by stage; the stem goes with the first and the tail with the last."""
        return tuple(
            tuple(f"{box}.{name}" for box in boxes for name, _ in self.get_submodule(box).named_children())
            for boxes in self.stages
        )

    def steps(self) -> Iterator[tuple[int, bool, bool, nn.Module]]:
        """(stage, whether its first, whether its last, block) in order."""
        for number, names in enumerate(self.cuts(), 1):
            for name in names:
                yield number, name == names[0], name == names[-1], self.get_submodule(name)

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
        steps = list(self.steps())
        if first == 0:
            x = self.stem(x)
            taken |= wanted(taps, {"stem": x})
        for stage, opens, closes, block in steps[first:stop]:
            if opens:
                x = self.enter(stage, x)
            x, answer = block(x)
            if closes:
                taken |= wanted(taps, {f"stage{stage}": x})
            read = f"stage{stage - self.pre_activation}.pre"
            if read in taps and (opens if self.pre_activation else closes):
                taken[read] = self.before(answer)
        if first < len(steps) and stop in (None, len(steps)):
            x, read_there = self.tail(x)
            taken |= wanted(taps, read_there)
        if stop is not None:
            return x, taken
        pooled = x.mean((2, 3))
        return self.head(pooled), taken | wanted(taps, {"pooled": pooled})


def wanted(taps: Sequence[str], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only these are kept: a map that nobody reads must not outlive its use."""
    return {name: tensor for name, tensor in found.items() if name in taps}


def conv3x3(inside: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, width, 3, stride, 1, bias=False)


def conv1x1(inside: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, width, 1, stride, bias=False)


@torch.no_grad()
def kaiming_fan_out(network: nn.Module) -> None:
    """Normal convolution weights of variance 2 / (k k width) (He et al. 2015); norms and the classifier keep torch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def narrow_linears(network: nn.Module) -> None:
    """Linear weights of standard deviation 0.01; biases, those of convolutions too, are 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
