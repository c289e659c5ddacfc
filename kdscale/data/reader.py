"""Positions -> pixels: looks samples up, reads and checks their bytes, decodes, transforms. Runs in workers or in place.

A sample that cannot be read is never replaced by another one, which would break exactly-once: it raises, or with
``on_bad=mask`` keeps its place as a zero image that does not count.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdscale.errors import DataError
from kdscale.keys import fold, key
from kdscale.recipe.data import Data

from .augment import Transform, erasing_boxes, generators_kept
from .decode import decode
from .order import Integers, Sequence
from .split import Split
from .store import LocalStore
from .table import Column, Part

AUGMENT = 4  # the word that keeps the keys of augmentation apart from those of the order
IGNORED = -100  # label of what does not count
ANNOUNCED = 16 << 10  # bytes from which a sample is worth a system call of its own


class Rows(NamedTuple):
    """What is known of some positions before any byte is read; all arrays of one length, ``views`` rows a position."""

    positions: Integers
    samples: Integers  # -1: padding
    repeats: Integers
    keys: NDArray[np.uint64]
    draws: NDArray[np.float64]
    boxes: Integers
    views: int = 1

    def of(self, start: int, stop: int) -> Rows:
        """The rows of these positions."""
        cut = slice(start * self.views, stop * self.views)
        positions, samples, repeats, keys, draws, boxes, views = self
        return Rows(positions[cut], samples[cut], repeats[cut], keys[cut], draws[cut], boxes[cut], views)


class Reader(Protocol):
    """Both halves of reading. ``look_up`` is cheap a position when it is called for hundreds of them at once."""

    size: int

    def look_up(self, positions: Integers) -> Rows: ...

    def read(self, rows: Rows, following: Rows | None = None) -> Part: ...


class Bytes:
    """Bytes of samples, checked against their checksums."""

    def __init__(self, split: Split, verify: bool) -> None:
        self.split, self.verify = split, verify and split.crc
        self.store = LocalStore()

    def read(self, sample: int) -> bytearray:
        record = self.split.records[sample]
        data = self.store.read(self.split.shard_of(sample), int(record["offset"]), int(record["size"]))
        if self.verify and (found := zlib.crc32(data)) != int(record["crc32"]):
            raise DataError(f"crc {found:08x}, the index says {int(record['crc32']):08x}: the file is damaged; restore it")
        return data

    def announce(self, samples: Integers) -> None:
        """Small samples are left to the kernel's own reading ahead."""
        samples = samples[samples >= 0]
        records = self.split.records[samples]
        large = records["size"] >= ANNOUNCED
        for sample, record in zip(samples[large].tolist(), records[large]):
            self.store.announce(self.split.shard_of(sample), int(record["offset"]), int(record["size"]))


class TrainReader:
    """Training images under the keys of ``sequence.seed``."""

    def __init__(self, split: Split, data: Data, sequence: Sequence, together: int, views: int = 1) -> None:
        """``together``: ranks x accumulation x workers; where it divides the group, copies of an image meet in one reader.

        ``views``: rows of each position, each with its own augmentation; the first is what one view alone would be.
        """
        self.split, self.data, self.sequence, self.views = split, data, sequence, views
        self.size = split.info.size
        self.bytes = Bytes(split, data.verify == "always")
        self.transform = Transform(data.train, split.info)
        self.foreign = self.transform.policy is not None
        group = sequence.group
        self.kept: dict[int, Tensor] = {}
        self.keeps = 2 * group // together if sequence.repeats > 1 and group % together == 0 else 0

    def look_up(self, positions: Integers) -> Rows:
        samples, repeats, epochs = self.sequence.at(positions)
        words = (epochs.astype(np.uint64), samples.astype(np.uint64), repeats.astype(np.uint64))
        keys: NDArray[np.uint64] = key(self.sequence.seed, AUGMENT, *words)
        if self.views > 1:
            positions, samples, repeats = (np.repeat(values, self.views) for values in (positions, samples, repeats))
            keys = np.stack([keys, *(fold(keys, view) for view in range(1, self.views))], axis=1).reshape(-1)
        draws = self.transform.draws(keys)
        boxes = erasing_boxes(self.data.train, self.size, keys, draws)
        return Rows(positions, samples, repeats, keys, draws, boxes, self.views)

    def read(self, rows: Rows, following: Rows | None = None) -> Part:
        """Reads ``rows``; ``following`` are announced to the operating system. DataError names sample, shard, offset."""
        if following is not None:
            self.bytes.announce(following.samples[:: following.views])
        if not self.foreign:
            return self._read(rows)
        with generators_kept():
            return self._read(rows)

    def _read(self, rows: Rows) -> Part:
        images = torch.zeros(len(rows.positions), self.size, self.size, 3, dtype=torch.uint8)
        valid, notes, keys = np.ones(len(rows.positions), bool), [], rows.keys.tolist()
        firsts = range(0, len(rows.positions), rows.views)
        for first, sample, repeat in zip(firsts, rows.samples[:: rows.views].tolist(), rows.repeats[:: rows.views].tolist()):
            try:
                image = self._decoded(sample, repeat)
            except DataError as error:
                message = f"{self.split.describe(sample)}: {error}"
                if self.data.on_bad == "raise":
                    raise DataError(f"{message}; on_bad=mask goes on without it") from None
                valid[first : first + rows.views] = False
                notes.append(message)
                continue
            try:
                for row in range(first, first + rows.views):
                    images[row] = self.transform(image, rows.draws[row], keys[row])
            except DataError as error:  # a good image that the recipe does not fit is nothing to go on without
                raise DataError(f"{self.split.describe(sample)}: {error}") from None
        return Part(images, filled(rows, valid, self.split.info.labels), tuple(notes))

    def _decoded(self, sample: int, repeat: int) -> Tensor:
        """Copies of one image are decoded once where one reader meets them all; oldest pictures go first."""
        image = self.kept.pop(sample, None)
        if image is None:
            image = decode(self.bytes.read(sample))
        if self.keeps and repeat < self.sequence.repeats - 1:
            if len(self.kept) >= self.keeps:
                del self.kept[next(iter(self.kept))]
            self.kept[sample] = image
        return image


def filled(rows: Rows, valid: NDArray[np.bool_], labels: Any) -> Tensor:
    """The table of a part, without what only a whole micro-batch knows."""
    table = np.zeros((len(valid), Column.BOXES + rows.boxes.shape[1]), np.int64)
    table[:, Column.POSITION] = rows.positions
    table[:, Column.INDEX] = rows.samples
    table[:, Column.REPEAT] = rows.repeats
    table[:, Column.LABEL] = np.where(valid, labels[rows.samples], IGNORED)
    table[:, Column.VALID] = valid
    table[:, Column.KEY] = rows.keys.view(np.int64)
    table[:, Column.BOXES :] = np.where(valid[:, None], rows.boxes, 0)
    return torch.from_numpy(table)
