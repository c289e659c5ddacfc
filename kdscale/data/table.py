"""What is known of each image of a micro-batch beside its pixels: one int64 table, so that one copy takes it to the device.

Real numbers are stored by their bits. The erasing boxes (top, left, height, width each) come last.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Column(IntEnum):
    POSITION = 0
    INDEX = 1
    REPEAT = 2
    LABEL = 3
    VALID = 4
    KEY = 5  # of the sample's augmentation, as a signed word
    PARTNER = 6  # row of the image that this one is mixed with
    WEIGHT = 7  # bits of a float64: share of this image's own label
    TOP = 8  # the cutmix box, empty for mixup
    BOTTOM = 9
    LEFT = 10
    RIGHT = 11
    ERASED = 12  # row number i holds the i-th row that has anything erased
    BOXES = 13


@dataclass(slots=True)
class Part:
    """What a worker sends: its share of a micro-batch, in order of position."""

    images: Tensor  # uint8 [n, S, S, 3]
    table: Tensor  # int64 [n, Column.BOXES + 4 * boxes]
    notes: tuple[str, ...] = ()  # on samples that a budget let pass


@dataclass(frozen=True, slots=True)
class Failure:
    """What a worker sends in place of its share when it cannot go on."""

    message: str
