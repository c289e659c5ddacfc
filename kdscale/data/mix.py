"""Mixup and cutmix of a global batch, drawn so that neither ranks nor accumulation change what is mixed with what.

Slot s of a step belongs to class s mod M and row s // M; its partner is the same class in the mirrored row, so pairs stay
in one micro-batch wherever ranks x accumulation divides M. Each group of classes has one draw a step. With one group this
is timm's ``mode=batch``, with eight it is that of eight GPUs.

Mixup: Zhang et al. 2018, arXiv:1710.09412. Cutmix: Yun et al. 2019, arXiv:1905.04899. Box, corrected weight and
smoothing by timm's formulas; published CIFAR code differs in boxes of an odd side alone (``cutmix_side``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdscale.keys import key
from kdscale.recipe.data import Augment

from .order import Integers
from .plans import Plan, mix_span
from .table import Column

MIX = 5  # the word that keeps the keys of mixing apart


class Draw(NamedTuple):
    """``weight``: share of an image's own label. Box (top, bottom, left, right): pasted from the partner; empty: mixup."""

    weight: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


def draw(augment: Augment, k: int, size: int) -> Draw:
    """What one group does in one step; ``size``: pixels of a side."""
    random = np.random.Generator(np.random.Philox(key=k))
    if random.random() >= augment.mix_prob:
        return Draw(1.0)
    both = augment.mixup > 0 and augment.cutmix > 0
    if not (random.random() < augment.mix_switch if both else augment.cutmix > 0):
        return Draw(float(random.beta(augment.mixup, augment.mixup)))
    weight = float(random.beta(augment.cutmix, augment.cutmix))
    return cut(weight, int(random.integers(size)), int(random.integers(size)), size, augment.cutmix_side == "even")


def cut(weight: float, y: int, x: int, size: int, even: bool = False) -> Draw:
    """The box of area 1 - ``weight`` around (y, x), and the weight that its part inside the image leaves."""
    side = int(size * math.sqrt(1 - weight))
    side -= side % 2 if even else 0
    top, left = max(y - side // 2, 0), max(x - side // 2, 0)
    bottom, right = min(y + (side + 1) // 2, size), min(x + (side + 1) // 2, size)
    return Draw(1.0 - (bottom - top) * (right - left) / (size * size), (top, bottom, left, right))


class Mixer:
    """Fills the mixing columns of a micro-batch's table, on the host."""

    def __init__(self, augment: Augment, plan: Plan, seed: int, size: int) -> None:
        self.augment, self.plan, self.seed, self.size = augment, plan, seed, size

    def on(self, start: int) -> bool:
        """Whether the step that starts at this position is mixed."""
        off = self.augment.mix_off_epoch
        return self.plan.mixing and (off is None or start // self.plan.samples < off)

    def fill(self, table: Tensor, start: int, batch: int, share: int) -> None:
        """``table``: one micro-batch of the step of ``batch`` positions from ``start``; ``share``: ranks x accumulation."""
        span = mix_span(batch)
        slots: Integers = table[:, Column.POSITION].numpy() - start
        kind, row = slots % span, slots // span
        partner = ((batch // span - 1 - row) * span + kind - slots[0]) // share
        groups = math.gcd(self.augment.mix_groups, span)
        draws = [draw(self.augment, key(self.seed, MIX, start, group), self.size) for group in range(groups)]
        group = kind % groups
        weight = np.array([one.weight for one in draws])[group]
        boxes = np.array([one.box for one in draws])[group]
        alone = ~(table[:, Column.VALID].numpy().astype(bool) & table[:, Column.VALID].numpy()[partner].astype(bool))
        weight[alone], boxes[alone] = 1.0, 0  # a masked sample is mixed into nothing
        _store(table, partner, weight, boxes)


def _store(table: Tensor, partner: Integers, weight: NDArray[np.float64], boxes: NDArray[np.int64]) -> None:
    table[:, Column.PARTNER] = torch.from_numpy(partner)
    table[:, Column.WEIGHT] = torch.from_numpy(weight.view(np.int64))
    table[:, Column.TOP : Column.RIGHT + 1] = torch.from_numpy(boxes)


def mix_views(table: Tensor, views: int) -> None:
    """``table``: ``views`` rows an image, of which the first is filled: each view is mixed with the partner's, as the first is."""
    by_image = table.view(-1, views, table.shape[1])
    by_image[:, 1:, Column.PARTNER : Column.RIGHT + 1] = by_image[:, :1, Column.PARTNER : Column.RIGHT + 1]
    by_image[..., Column.PARTNER] = by_image[..., Column.PARTNER] * views + torch.arange(views)


def mixed(images: Tensor, table: Tensor) -> Tensor:
    """[B,3,H,W] float32 -> the same; ``table`` on the images' device."""
    weight = table[:, Column.WEIGHT].view(torch.float64).to(images.dtype)
    top, bottom, left, right = (table[:, column].view(-1, 1, 1, 1) for column in range(Column.TOP, Column.RIGHT + 1))
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    pasted = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    share = torch.where(bottom > top, torch.ones_like(bottom, dtype=images.dtype), weight.view(-1, 1, 1, 1))
    partner = images[table[:, Column.PARTNER]]
    return torch.where(pasted, partner, images * share + partner * (1 - share))


def soft_targets(table: Tensor, classes: int, smoothing: float, mixing: bool) -> Tensor:
    """[B,C] float32: one-hot labels, smoothed, mixed by weight; rows of zeros where a sample does not count."""
    low, high = smoothing / classes, 1.0 - smoothing + smoothing / classes
    label = table[:, Column.LABEL]
    own = torch.full((len(label), classes), low, device=table.device).scatter_(1, label.clamp(min=0)[:, None], high)
    if mixing:
        weight = table[:, Column.WEIGHT].view(torch.float64).float()[:, None]
        own = own * weight + own[table[:, Column.PARTNER]] * (1 - weight)
    return own * table[:, Column.VALID, None]
