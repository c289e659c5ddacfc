"""What is known of a phase's data: read where they lie, else as published or as given, for a plan is made before the data come."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..data import open_split
from ..data.resident import LARGEST_SIDE, Unfit, check_augmentation, first_shape
from ..errors import DataError
from ..recipe import Data
from ..types import DatasetInfo
from .known import Known, Mark

MEGABYTE, GIGABYTE = 10**6, 10**9
SMALL_SHARD, LARGE_SHARD = 256 * MEGABYTE, GIGABYTE  # of a packed set below and above MANY_BYTES
MANY_BYTES = 500 * GIGABYTE


@dataclass(frozen=True, slots=True)
class Published:
    """``size``: mean bytes of an image file; ``side``: its shorter side in pixels."""

    samples: int
    classes: int
    size: float
    side: int


PUBLISHED = {
    "imagenet": Published(1_281_167, 1000, 110_000, 400),
    "imagenet21k": Published(13_153_500, 19_167, 99_000, 400),
    "imagenet100": Published(126_689, 100, 110_000, 400),
    "tiny-imagenet": Published(100_000, 200, 2_300, 64),
    "cifar10": Published(50_000, 10, 2_300, 32),
    "cifar100": Published(50_000, 100, 2_300, 32),
    "runs/quickstart/shards": Published(10_000, 10, 550, 28),
}
UNKNOWN = Published(0, 0, 110_000, 400)


@dataclass(frozen=True, slots=True)
class Facts:
    """``size``: mean bytes of an image; ``counts``: [shards + 1] cumulative samples; ``resident``: bytes that a GPU holds of
    a set which is not streamed, else 0."""

    info: DatasetInfo
    samples: Known
    size: Known
    counts: NDArray[np.int64]
    counts_mark: Mark
    resident: float


def facts_of(data: Data, samples: int | None = None, classes: int | None = None) -> Facts:
    """Raises DataError where the data are not here, no published set has their name, and nothing is given."""
    try:
        split = open_split(data, "train")
    except DataError:
        return _told(data, samples, classes)
    if samples is not None or classes is not None:
        return _told(data, samples or split.info.samples, classes or split.info.classes)
    size = float(split.records["size"].mean(dtype=np.float64))
    shape = first_shape(split, data)
    info = replace(split.info, labels=None)
    return Facts(
        info,
        Known(info.samples, "measured"),
        Known(size, "measured"),
        np.asarray(split.counts),
        "measured",
        _resident(data, len(split), shape),
    )


def _told(data: Data, samples: int | None, classes: int | None) -> Facts:
    published = PUBLISHED.get(data.source, UNKNOWN)
    count, kinds = samples or published.samples, classes or published.classes
    if not count or not kinds:
        raise DataError(
            f"data {data.source!r} are not here and no published set has that name: give --samples and --classes, or"
            f" data.source= one of {', '.join(name for name in PUBLISHED if '/' not in name)}"
        )
    side = data.train.size
    info = DatasetInfo("", count, kinds, None, data.mean or (0.5,) * 3, data.std or (0.25,) * 3, side)
    known = published is not UNKNOWN
    return Facts(
        info,
        Known(count, "given" if samples else "vendor"),
        Known(published.size, "vendor" if known else "assumed"),
        shards_for(count, published.size),
        "assumed",
        _resident(data, count, (published.side, published.side)),
    )


def shards_for(samples: int, size: float) -> NDArray[np.int64]:
    """[shards + 1] cumulative samples of a set of images of ``size`` bytes, packed into shards as large as is advised."""
    total = samples * size
    each = max(1, math.floor((LARGE_SHARD if total > MANY_BYTES else SMALL_SHARD) / size))
    return np.minimum(np.arange(0, samples + each, each, dtype=np.int64), samples)


def _resident(data: Data, samples: int, shape: tuple[int, int]) -> float:
    """Bytes of a set that the stream decodes once and keeps on the device, 0 where it reads image by image."""
    needed = float(samples * shape[0] * shape[1] * 3)
    try:
        check_augmentation(data.train)
    except Unfit:
        return 0.0
    fits = needed <= data.resident_mb * 2**20 and (data.read == "resident" or max(shape) <= LARGEST_SIDE)
    return needed if fits and data.read != "stream" else 0.0


def effort(data: Data, size: float, views: int) -> float:
    """Time to make one image ready, in that of DeiT's recipe on ImageNet's originals: 2.0 ms to decode 110 kB, 0.7 ms to cut
    and lay down 224 pixels, 1.5 ms for a policy and 1.1 ms for colour jitter, as measured on one core."""
    train = data.train
    changes = 1.5 if train.policy else 1.1 if train.jitter else 0.0
    return views * (2.0 * size / 110_000 + (0.7 + changes) * (train.size / 224) ** 2) / 4.2
