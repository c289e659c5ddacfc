"""Bytes of samples out of shards, by offset. Another store (remote shards) needs only the same two methods."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from kdscale.errors import DataError

OPEN_SHARDS = 128  # far below the usual limit of 1024 descriptors a process


class Store(Protocol):
    def read(self, shard: Path, offset: int, size: int) -> bytearray:
        """The ``size`` bytes of ``shard`` at ``offset``; DataError if they are not there."""

    def announce(self, shard: Path, offset: int, size: int) -> None:
        """Says that these bytes will be read soon."""


class LocalStore:
    """Shards on a mounted file system; keeps the most recently used ones open."""

    def __init__(self) -> None:
        self._handles: OrderedDict[Path, int] = OrderedDict()

    def read(self, shard: Path, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        try:
            got = os.preadv(self._handle(shard), [data], offset)
        except OSError as error:  # a server that lost the file, a disk that fails
            self._forget(shard)
            raise DataError(f"shard {shard} cannot be read ({error.strerror}); restore it") from None
        if got != size:
            self._forget(shard)
            raise DataError(f"read {got} of {size} bytes of {shard} at {offset}: the shard is truncated; restore it")
        return data

    def announce(self, shard: Path, offset: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _forget(self, shard: Path) -> None:
        """What is put back is another file: it is opened anew."""
        if shard in self._handles:
            os.close(self._handles.pop(shard))

    def _handle(self, shard: Path) -> int:
        handle = self._handles.pop(shard, None)
        if handle is None:
            try:
                handle = os.open(shard, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"shard {shard} cannot be opened ({error.strerror}); restore it") from None
            if len(self._handles) >= OPEN_SHARDS:
                os.close(self._handles.popitem(last=False)[1])
        self._handles[shard] = handle
        return handle
