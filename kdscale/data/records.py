"""The binary index of a split: 24 bytes a sample, read through a memory map that all workers of a node share.

Layout, little-endian: a header of 64 bytes (magic, samples, shards, bytes a record), shards + 1 cumulative counts of
samples, then one record a sample in storage order. No Python object exists per sample: reference counts would unshare
the pages of forked workers.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.errors import DataError

from .files import replacing

MAGIC = b"KDSIDX01"
RECORD = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("label", "<i4"), ("key_hash", "<u4")])
_HEADER = struct.Struct("<8sQQQ32x")

Records = NDArray[Any]  # structured, of RECORD
Counts = NDArray[np.int64]


def write_records(path: Path, counts: Counts, records: Records) -> str:
    """Writes the index of a split; returns its SHA-256. ``counts``: [shards + 1], cumulative."""
    parts = (
        _HEADER.pack(MAGIC, len(records), len(counts) - 1, RECORD.itemsize),
        counts.astype("<u8").tobytes(),
        records.tobytes(),
    )
    with replacing(path) as file:
        for part in parts:
            file.write(part)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def open_records(path: Path) -> tuple[Counts, Records]:
    """(cumulative counts, records) as read-only memory maps. DataError: not an index, or of another length."""
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise DataError(f"{path} is not an index of samples: index the shards again")
    _, samples, shards, width = _HEADER.unpack(head)
    start = _HEADER.size + 8 * (shards + 1)
    if width != RECORD.itemsize or path.stat().st_size != start + samples * width:
        raise DataError(f"{path} is {path.stat().st_size} bytes for {samples} samples: damaged; index the shards again")
    counts = np.memmap(path, "<i8", "r", _HEADER.size, (shards + 1,))
    return counts, np.memmap(path, RECORD, "r", start, (samples,)) if samples else np.empty(0, RECORD)
