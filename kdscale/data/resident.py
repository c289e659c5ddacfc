"""Small sets whole on the device: every image is read, checked and decoded once, and a batch is one gather of pixels.

The order, the keys, the mixing and the table of a micro-batch are the stream's own code; crop and flip are arithmetic on
indices, of whole numbers alone, so pixels are the stream's bit by bit on any device. Images that one gather cannot cut
(resized crops, policies on pictures, images of several sizes) stay with the stream.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdscale.errors import DataError
from kdscale.recipe.data import Augment, Data

from .augment import FLIP, LEFT, TOP
from .autoaugment import NAME as AUTOAUGMENT
from .decode import decode
from .loading import Loading
from .order import Integers
from .plans import Plan
from .processes import pool
from .reader import Bytes, Rows, TrainReader, filled
from .split import Split
from .stream import Steps, TrainStream
from .table import Part

log = logging.getLogger(__name__)

LARGEST_SIDE = 96  # pixels: what read=auto takes for small images
PER_TASK = 4096  # images decoded at once
PER_PROCESS = 30_000  # images for which starting a process, two to three seconds, pays


class Unfit(DataError):
    """A set or a recipe that cannot be resident; its message is the reason."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """All images of a split. ``pixels``: [N * height * width + 1, 3] uint8, the last one black: what lies outside an image."""

    pixels: Tensor
    height: int
    width: int
    bad: dict[int, str]  # why samples that on_bad=mask lets pass cannot be read; they are black

    @property
    def outside(self) -> int:
        return len(self.pixels) - 1


class ResidentReader:
    """Cuts the images of a micro-batch out of ``pictures``, where these are."""

    def __init__(self, pictures: Pictures, look_up: TrainReader) -> None:
        self.pictures, self.rows = pictures, look_up
        self.split, self.augment, self.size = look_up.split, look_up.data.train, look_up.size
        self.device = pictures.pixels.device
        self.bad = np.array(sorted(pictures.bad), np.int64)
        self.side = torch.arange(self.size, device=self.device)

    def look_up(self, positions: Integers) -> Rows:
        return self.rows.look_up(positions)

    def read(self, rows: Rows, following: Rows | None = None) -> Part:
        """Images [n, S, S, 3] on the device, and their table on the host, in page-locked memory where that is a GPU."""
        valid = ~np.isin(rows.samples, self.bad)
        bad = rows.samples[:: rows.views][~valid[:: rows.views]].tolist()
        notes = tuple(f"{self.split.describe(sample)}: {self.pictures.bad[sample]}" for sample in bad)
        table = filled(rows, valid, self.split.info.labels)
        return Part(self._cut(rows), self._locked(table), notes)

    def _cut(self, rows: Rows) -> Tensor:
        height, width = self.pictures.height, self.pictures.width
        corners = places(self.augment, (height, width), self.size, rows.draws)
        numbers = self._locked(torch.from_numpy(np.stack((rows.samples, *corners)))).to(self.device, non_blocking=True)
        sample, top, left, flipped = numbers[:, :, None]
        y = top + self.side
        x = left + torch.where(flipped > 0, self.size - 1 - self.side, self.side)
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        pixel = ((sample * height + y) * width)[:, :, None] + x[:, None, :]
        pixel = torch.where(inside, pixel, self.pictures.outside)
        return self.pictures.pixels.index_select(0, pixel.view(-1)).view(*pixel.shape, 3)

    def _locked(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def places(
    augment: Augment, image: tuple[int, int], size: int, draws: NDArray[np.float64]
) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """(top, left, whether flipped) of each row's window of ``size`` pixels; outside the image where it is negative."""
    pad = augment.pad if augment.crop == "pad" else 0
    top, left = (
        (draws[:, number] * (side + 2 * pad - size + 1)).astype(np.int64) - pad for number, side in zip((TOP, LEFT), image)
    )
    return top, left, draws[:, FLIP] < augment.flip


class ResidentStream(TrainStream):
    """A :class:`TrainStream` that reads nothing but memory, from the first batch on, which takes the time of decoding.

    With ``read=auto`` a set that proves unfit is streamed. Errors of reading come with the first batch, where ranks agree on
    them; DataError at once for an augmentation that is not one of whole batches.
    """

    pictures: Pictures | None = None

    def _load(self, steps: Steps) -> Loading:
        try:
            self.pictures = self.pictures or load(self.split, self.data, self.device, self.workers)
        except Unfit as reason:
            if self.data.read == "resident":
                raise refused(reason) from None
            log.info("images are read one by one: %s", reason)
            return super()._load(steps)
        reader = ResidentReader(self.pictures, TrainReader(self.split, self.data, self._sequence, 1, self.views))
        return Loading(steps, reader, 0, self.data.prefetch, self.rank, pin=False, views=self.views)


def open_stream(split: Split, data: Data, plan: Plan, **settings: Any) -> TrainStream:
    """The stream that ``data.read`` asks for, with :class:`TrainStream`'s arguments. DataError where it cannot be resident."""
    try:
        if data.read != "stream":
            check_augmentation(data.train)
            return ResidentStream(split, data, plan, **settings)
    except Unfit as reason:
        if data.read == "resident":
            raise refused(reason) from None
    return TrainStream(split, data, plan, **settings)


def check_reading(data: Data) -> None:
    """Before anything is trained: DataError for a set that is to be resident and whose augmentation cannot be."""
    if data.read == "resident":
        try:
            check_augmentation(data.train)
        except Unfit as reason:
            raise refused(reason) from None


def refused(reason: Unfit) -> DataError:
    return DataError(f"the set cannot be resident: {reason}; set data.read=stream")


def check_augmentation(augment: Augment) -> None:
    """Unfit for what is done to each image by itself."""
    if augment.crop not in ("pad", "none"):
        raise Unfit(f"crop {augment.crop} resizes each image by itself")
    if augment.policy not in (None, AUTOAUGMENT):
        raise Unfit(f"policy {augment.policy} changes each image by itself")
    if augment.policy is None and augment.jitter:
        raise Unfit("colour jitter changes each image by itself")


def load(split: Split, data: Data, device: torch.device, workers: int) -> Pictures:
    """Decodes the whole split, in several processes where it is large. Raises Unfit, or DataError naming a sample."""
    shape = first_shape(split, data)
    check_size(split, data, shape)
    height, width = shape
    pixels = torch.zeros(len(split) * height * width + 1, 3, dtype=torch.uint8)
    images = pixels[:-1].view(len(split), height, width, 3)
    bad: dict[int, str] = {}
    starts = range(0, len(split), PER_TASK)
    tasks = [partial(decoded, split, data, start, min(start + PER_TASK, len(split)), shape) for start in starts]
    for start, (part, reasons) in zip(starts, _results(tasks, jobs(len(split), workers)), strict=True):
        images[start : start + len(part)] = torch.from_numpy(part)
        bad |= reasons
    return Pictures(pixels.to(device), height, width, bad)


def jobs(samples: int, workers: int) -> int:
    """How many processes decode: those that start sooner than the others are done."""
    return max(1, min(workers, samples // PER_PROCESS))


def first_shape(split: Split, data: Data) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    stored = Bytes(split, data.verify == "always")
    for sample in range(len(split)):
        try:
            image = decode(stored.read(sample))
        except DataError as error:
            _pass(split, data, sample, error)
            continue
        return image.shape[0], image.shape[1]
    raise DataError(f"no image of split {split.name} can be read: restore its shards")


def check_size(split: Split, data: Data, shape: tuple[int, int]) -> None:
    """Unfit unless every crop lies within the frame and all the images within ``resident_mb``."""
    (height, width), size, augment = shape, split.info.size, data.train
    if augment.crop == "none" and shape != (size, size):
        raise Unfit(f"images are {height} x {width}, and crop none needs {size} x {size}")
    if augment.crop == "pad" and min(shape) + 2 * augment.pad < size:
        raise Unfit(f"images are {height} x {width}, too small for a crop of {size} with {augment.pad} pixels of padding")
    if data.read == "auto" and max(shape) > LARGEST_SIDE:
        raise Unfit(f"images are {height} x {width}, larger than {LARGEST_SIDE} pixels: data.read=resident takes them")
    needed = len(split) * height * width * 3 / 2**20
    if needed > data.resident_mb:
        raise Unfit(f"{len(split)} images of {height} x {width} take {needed:.0f} MB, more than resident_mb {data.resident_mb}")


def decoded(
    split: Split, data: Data, start: int, stop: int, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Images ``start`` to ``stop`` (not included), and why some of them are black. Runs in a process of the pool."""
    stored, bad = Bytes(split, data.verify == "always"), {}
    images = np.zeros((stop - start, *shape, 3), np.uint8)
    for sample in range(start, stop):
        try:
            image = decode(stored.read(sample))
        except DataError as error:
            bad[sample] = _pass(split, data, sample, error)
            continue
        if image.shape[:2] != shape:
            sizes = f"{image.shape[0]} x {image.shape[1]}, others {shape[0]} x {shape[1]}"
            raise Unfit(f"images are of several sizes ({split.describe(sample)} is {sizes})")
        images[sample - start] = image.numpy()
    return images, bad


def _pass(split: Split, data: Data, sample: int, error: DataError) -> str:
    """The reason, where ``on_bad`` lets a sample pass that cannot be read."""
    if data.on_bad == "raise":
        raise DataError(f"{split.describe(sample)}: {error}; on_bad=mask goes on without it") from None
    return str(error)


def _results(tasks: Sequence[Callable[[], Any]], processes: int) -> Iterator[Any]:
    """What the tasks return, in order; none is kept."""
    if processes == 1:
        yield from (task() for task in tasks)
        return
    try:
        with pool(processes) as submit:
            futures = deque(submit(task) for task in tasks)
            while futures:
                yield futures.popleft().result()
    except BrokenProcessPool:
        raise DataError("a process that decodes the set died, probably out of memory: give fewer data.workers") from None
