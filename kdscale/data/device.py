"""The last part of the way: uint8 pixels -> a normalised, erased and mixed batch, on the device and in float32.

AutoAugment's policy comes before that, on the bytes, and cutout (DeVries and Taylor 2017, arXiv:1708.04552) after it.

Pixels travel as bytes, a quarter of their size as numbers. Nothing here waits for the device: every shape is known to
the host. On CUDA all of it runs on a stream of its own, and the trainer's stream waits for its event alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor

from kdscale.keys import torch_fold, torch_mix, torch_uniform
from kdscale.recipe.data import Augment
from kdscale.types import Batch, DatasetInfo

from .autoaugment import NAME, NOTHING, AutoAugment
from .mix import mixed, soft_targets
from .table import Column

CUTOUT = 30  # draws of the sample's key: the row and the column of the middle


class Finish:
    """(images, table) of a micro-batch on the host -> ``Batch`` on the device. ``augment`` None: evaluation."""

    def __init__(self, info: DatasetInfo, device: torch.device, augment: Augment | None, classes: int, views: int = 1) -> None:
        """``views``: rows an image."""
        self.info, self.device, self.augment, self.classes, self.views = info, device, augment, classes, views
        self.policy = AutoAugment(info.size, device) if augment is not None and augment.policy == NAME else None
        self.mean = 255 * torch.tensor(info.mean, device=device).view(1, 3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(info.std, device=device).view(1, 3, 1, 1))

    def __call__(self, images: Tensor, table: Tensor, mixing: bool, erased: int, largest: tuple[int, int]) -> Batch:
        """``erased``: how many rows have anything erased; ``largest``: height and width that hold each of their boxes."""
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        table = table.to(self.device, non_blocking=True)
        if self.policy is not None:
            moves = torch.where(table[:, Column.VALID, None] > 0, self.policy.moves(table[:, Column.KEY]), NOTHING)
            images = self.policy(images, moves).contiguous(memory_format=torch.channels_last)
        images = (images.float() - self.mean) * self.scale
        smoothing = 0.0
        if self.augment is not None:
            smoothing = self.augment.smoothing
            if self.augment.cutout:
                cut_out(images, table[:, Column.KEY], self.augment.cutout)
            if erased:
                erase(images, table, erased, largest, self.augment.erase_mode)
        targets = soft_targets(table, self.classes, smoothing, mixing) if mixing or smoothing else None
        return self._batch(mixed(images, table) if mixing else images, table, targets)

    def _batch(self, images: Tensor, table: Tensor, targets: Tensor | None) -> Batch:
        if self.views > 1:
            images, table = images.view(-1, self.views, *images.shape[1:]), table[:: self.views]
            targets = targets[:: self.views].contiguous() if targets is not None else None
        label, index, position, repeat, valid = (
            table[:, column].contiguous()
            for column in (Column.LABEL, Column.INDEX, Column.POSITION, Column.REPEAT, Column.VALID)
        )
        return Batch(images, (self.info.mean, self.info.std), label, targets, index, position, repeat, valid.bool())


def cut_out(images: Tensor, keys: Tensor, side: int) -> None:
    """Sets one square of normalised ``images`` [B,3,S,S] to zero in place: its middle is any pixel, its outside is lost."""
    place = torch.arange(images.shape[2], device=images.device)
    inside = []
    for number in (CUTOUT, CUTOUT + 1):
        first = (torch_uniform(keys, number) * images.shape[2]).long()[:, None] - side // 2
        inside.append((place >= first) & (place < first + side))
    images.masked_fill_((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def erase(images: Tensor, table: Tensor, erased: int, largest: tuple[int, int], mode: str) -> None:
    """Overwrites the rectangles of normalised ``images`` [B,3,H,W] in place.

    ``const``: zero, which is the mean of the data set. ``mean``: the image's own mean. ``pixel``: standard normal noise
    of the sample's key and the pixel's number alone.
    """
    rows = table[:erased, Column.ERASED]
    for start in range(Column.BOXES, table.shape[1], 4):
        top, left, height, width = (table[rows, start + number].view(-1, 1, 1, 1) for number in range(4))
        channel = torch.arange(3, device=images.device).view(1, -1, 1, 1)
        # Every box is as large as the largest one: what exceeds its own is folded back onto its last row and column,
        # where the same value is written once more.
        y = top + torch.minimum(torch.arange(largest[0], device=images.device).view(1, 1, -1, 1), (height - 1).clamp(min=0))
        x = left + torch.minimum(torch.arange(largest[1], device=images.device).view(1, 1, 1, -1), (width - 1).clamp(min=0))
        sample = rows.view(-1, 1, 1, 1)
        if mode == "pixel":
            number = (channel * images.shape[2] + y) * images.shape[3] + x
            value = noise(table[rows, Column.KEY].view(-1, 1, 1, 1), number)
        elif mode == "mean":
            value = images[rows].mean((2, 3), keepdim=True).expand(-1, -1, *largest)
        else:
            value = images.new_zeros(())
        value = torch.where(height > 0, value, images[sample, channel, y, x])
        images.index_put_((sample, channel, y, x), value)


def noise(key: Tensor, number: Tensor) -> Tensor:
    """Standard normal float32 of (key, number), by Box and Muller from the two halves of one hashed word."""
    word = torch_mix(torch_fold(key, number))
    first = (((word >> 40) & 0xFFFFFF).float() + 0.5) * 2.0**-24
    second = ((word & 0xFFFFFF).float() + 0.5) * 2.0**-24
    return torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * torch.pi * second)


def mark_erased(table: Tensor) -> tuple[int, tuple[int, int]]:
    """Lists in ``table`` (on the host) the rows with anything erased; (their number, sides that hold every box)."""
    boxes = table[:, Column.BOXES :].reshape(len(table), -1, 4)
    if not boxes.shape[1]:
        return 0, (0, 0)
    rows = (boxes[:, :, 2] > 0).any(1).nonzero()[:, 0]
    table[: len(rows), Column.ERASED] = rows
    return len(rows), (int(boxes[:, :, 2].max()), int(boxes[:, :, 3].max()))


def tensors(batch: Batch) -> Iterator[Tensor]:
    """The tensors of a batch, for what must be told of each."""
    return (value for field in fields(batch) if isinstance(value := getattr(batch, field.name), Tensor))
