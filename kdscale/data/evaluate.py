"""Evaluation that proves its count: every sample once, in storage order, and padding that no metric can mistake.

Padding has ``valid`` False, index -1, label -100 and a zero image, and gives every rank the same number of batches of the
same size, so no collective waits for a rank that is done. Samples that are lost or doubled show in the checksum, also
where they cancel in the count.

Pixels are timm's own evaluation transform on Pillow's decoder, bit by bit; they are normalised on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdscale.errors import DataError
from kdscale.keys import mix, torch_mix
from kdscale.recipe.data import Data
from kdscale.types import Batch, DatasetInfo

from .decode import pillow
from .device import Finish
from .loading import Loading, worker_count
from .order import Integers
from .reader import IGNORED, Bytes, Rows
from .resident import LARGEST_SIDE
from .split import Split
from .stream import ahead, check_labels
from .table import Column, Part

log = logging.getLogger(__name__)

MODULUS = (1 << 61) - 1  # as a mask: sums are compared modulo 2**61, which divides the wrap-around of 64 bits
PADDING = -1

Held = list[tuple[Tensor, Tensor]]
"""Images uint8 [b,S,S,3] and table of each batch of a whole split, on the device."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Batches of equal size for all ranks; the least padding that ``most`` images a batch and rank leave."""

    samples: int
    rank: int
    ranks: int
    most: int

    @property
    def stride(self) -> int:
        return self.ranks

    def __len__(self) -> int:
        return -(-self.samples // (self.ranks * self.most))

    @property
    def size(self) -> int:
        return -(-self.samples // (self.ranks * len(self)))

    def positions(self, number: int) -> Integers:
        return (number * self.size + np.arange(self.size)) * self.ranks + self.rank


class EvaluationReader:
    """Images as the reference evaluation sees them. ``indices``: the samples to read; None: all."""

    def __init__(self, split: Split, data: Data, indices: Integers | None) -> None:
        self.split, self.indices, self.size = split, indices, split.info.size
        self.samples = len(split) if indices is None else len(indices)
        self.bytes = Bytes(split, data.verify == "always")
        self.transform = reference_transform(data, split.info)

    def look_up(self, positions: Integers) -> Rows:
        inside = positions < self.samples
        places = np.where(inside, positions, 0)
        samples = np.where(inside, places if self.indices is None else self.indices[places], PADDING)
        none = np.zeros((len(positions), 0), np.int64)
        return Rows(positions, samples, np.zeros_like(positions), positions.astype(np.uint64), none.astype(float), none)

    def read(self, rows: Rows, following: Rows | None = None) -> Part:
        """Bad samples are never masked here: a score over fewer samples would be another score."""
        if following is not None:
            self.bytes.announce(following.samples)
        images = torch.zeros(len(rows.samples), self.size, self.size, 3, dtype=torch.uint8)
        for row, sample in enumerate(rows.samples.tolist()):
            if sample != PADDING:
                images[row] = self._image(sample)
        return Part(images, self._table(rows))

    def _image(self, sample: int) -> Tensor:
        try:
            return self.transform(pillow(self.bytes.read(sample))).permute(1, 2, 0)
        except DataError as error:
            raise DataError(f"{self.split.describe(sample)}: {error}") from None

    def _table(self, rows: Rows) -> Tensor:
        table, inside = np.zeros((len(rows.samples), Column.BOXES), np.int64), rows.samples != PADDING
        table[:, Column.POSITION], table[:, Column.INDEX], table[:, Column.VALID] = rows.positions, rows.samples, inside
        labels = self.split.records["label"][np.maximum(rows.samples, 0)]
        table[:, Column.LABEL] = np.where(inside, labels, IGNORED)
        return torch.from_numpy(table)


def reference_transform(data: Data, info: DatasetInfo) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform up to uint8 [3, S, S]: resize the short side to S / crop, then cut the centre."""
    from timm.data.transforms_factory import transforms_imagenet_eval

    transform: Callable[[Image.Image], Tensor] = transforms_imagenet_eval(
        info.size, crop_pct=data.eval_crop, interpolation=data.eval_interpolation, use_prefetcher=True
    )
    return transform


def evaluation_batches(
    split: Split,
    data: Data,
    *,
    rank: int,
    ranks: int,
    device: torch.device,
    workers: int | Literal["auto"],
    indices: Integers | None = None,
    local_ranks: int = 1,
    held: Held | None = None,
) -> Iterator[Batch]:
    """Batches of at most ``data.eval_batch`` images a rank, over the whole split or over ``indices`` of it.

    ``held``: what an earlier call over the whole split left there is not read again; a small set leaves its images.
    """
    if indices is not None and not len(indices):
        raise DataError(f"evaluation of split {split.name} was asked for no samples")
    check_labels(split, split.info.classes)
    if data.eval_crop < 1 and data.train.crop in ("pad", "none"):
        log.warning("evaluation cuts out the centre (eval_crop %s) of images that training sees whole", data.eval_crop)
    finish = Finish(split.info, device, None, split.info.classes)
    if held and indices is None:
        yield from (finish(images, table, False, 0, (0, 0)) for images, table in held)
        return
    reader = EvaluationReader(split, data, indices)
    rounds = Rounds(reader.samples, rank, ranks, data.eval_batch)
    pin = device.type == "cuda"
    loading = Loading(rounds, reader, worker_count(workers, local_ranks, rounds.size), data.prefetch, rank, pin)
    read: Held | None = [] if held is not None and indices is None and is_small(split, data) else None
    try:
        batches = _finished(loading, finish, device, read)
        yield from ahead(batches, device) if pin else batches
    finally:
        loading.close()
    if held is not None and read is not None:
        held.extend(read)  # of a whole pass alone


def _finished(loading: Loading, finish: Finish, device: torch.device, read: Held | None) -> Iterator[Batch]:
    for images, table, _ in loading:
        images, table = images.to(device, non_blocking=True), table.to(device, non_blocking=True)
        if read is not None:
            read.append((own(images), own(table)))
        yield finish(images, table, False, 0, (0, 0))


def own(tensor: Tensor) -> Tensor:
    """In this process's own memory: what a worker handed over keeps two file descriptors and room in /dev/shm."""
    shared = tensor.device.type == "cpu" and tensor.is_shared()  # type: ignore[no-untyped-call]
    return tensor.clone() if shared else tensor


def is_small(split: Split, data: Data) -> bool:
    """Whether the images may stay on the device, as those of a resident training set do."""
    size = split.info.size
    return data.read != "stream" and size <= LARGEST_SIDE and len(split) * size**2 * 3 <= data.resident_mb << 20


def checksum(index: Tensor) -> Tensor:
    """Sum of ``mix(id)`` over the valid ids in ``index`` (int64, -1: padding), modulo 2**61; a 0-dim int64 tensor.

    Sums of several are compared after ``& ((1 << 61) - 1)``: adding them wraps around without harm.
    """
    hashed = torch.where(index >= 0, torch_mix(index), torch.zeros_like(index))
    return hashed.sum() & MODULUS


def expected_checksum(samples: int | Integers) -> int:
    """What :func:`checksum` gives over all of ``samples`` ids, or over an array of ids."""
    ids = np.arange(samples) if isinstance(samples, int) else np.asarray(samples)
    return int(np.add.reduce(mix(ids.astype(np.uint64)), dtype=np.uint64)) & MODULUS
