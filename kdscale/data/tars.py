"""The members of a plain tar, found by reading headers alone: one 512-byte read a member, nothing unpacked.

Unlike ``tarfile`` and webdataset, a tar that ends without its end mark is an error: a shard cut between two members reads
there as a shorter shard, without a word. Names of the GNU and PAX extensions are understood (POSIX.1-2001, pax).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdscale.errors import DataError

BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR, _LONG_NAME, _PAX, _SPARSE = (b"0", b"\0", b"7"), b"L", b"x", b"S"


class Member(NamedTuple):
    name: str
    offset: int  # of the member's bytes, not of its header
    size: int


class Given(NamedTuple):
    """What an extended header says of the member after it."""

    path: str | None = None
    size: int | None = None


def members(path: Path) -> Iterator[Member]:
    """The regular files of the tar at ``path``, in order. DataError: compressed, cut short, sparse, or no tar at all."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield from _walk(handle, path, os.fstat(handle).st_size)
    finally:
        os.close(handle)


def _walk(handle: int, path: Path, end: int) -> Iterator[Member]:
    at, given = 0, Given()
    while True:
        header = os.pread(handle, BLOCK, at)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise DataError(f"shard {path} ends after {end} bytes without the end mark of a tar: it is truncated; restore it")
        _check_header(header, path, at)
        kind, size, offset = header[156:157], given.size or _number(header[124:136]), at + BLOCK
        if offset + size > end:
            raise DataError(
                f"shard {path} is {end} bytes, its member at {at} needs {offset + size}: it is truncated; restore it"
            )
        at = offset + -(-size // BLOCK) * BLOCK
        if kind == _LONG_NAME:
            given = Given(os.pread(handle, size, offset).rstrip(b"\0").decode(errors="replace"))
        elif kind == _PAX:
            given = _pax(os.pread(handle, size, offset), path)
        elif kind == _SPARSE:
            raise DataError(f"shard {path} holds a sparse member at {offset}, which cannot be read by offset; write it anew")
        else:
            if kind in _REGULAR:
                yield Member(given.path or _name(header), offset, size)
            given = Given()


def _check_header(header: bytes, path: Path, at: int) -> None:
    """The header's own sum: its bytes, with the eight of the sum itself read as spaces."""
    try:
        good = int(header[148:156].strip(b"\0 ") or b"0", 8) == sum(header) - sum(header[148:156]) + 8 * 32
    except ValueError:
        good = False
    if good:
        return
    for magic, name in _COMPRESSED.items():
        if at == 0 and header.startswith(magic):
            raise DataError(f"shard {path} is compressed with {name}, and samples are read by offset; decompress it")
    raise DataError(f"shard {path} has no tar header at {at}: it is damaged or not a tar")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for members from 8 GiB on
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(field.strip(b"\0 ") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0].decode(errors="replace")
    prefix = header[345:500].split(b"\0", 1)[0].decode(errors="replace") if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax(data: bytes, path: Path) -> Given:
    """``path`` and ``size`` of an extended header: records of the form ``length key=value\\n``."""
    given = Given()
    while data:
        length = int(data.split(b" ", 1)[0])
        field, _, text = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        if field.startswith(b"GNU.sparse"):
            raise DataError(f"shard {path} holds a sparse member, which cannot be read by offset; write it anew")
        if field == b"path":
            given = given._replace(path=text.decode(errors="replace"))
        elif field == b"size":
            given = given._replace(size=int(text))
        data = data[length:]
    return given
