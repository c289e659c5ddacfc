"""What a packing remembers of the shards that it has finished, so that it can be interrupted at any moment.

A note lies beside the manifest-to-be until the packing ends, and counts only while its shard has the noted size and ends.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import replacing
from .locate import notes_folder
from .manifest import Shard, SplitEntry, head_of
from .scan import Scan


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer of a shard notes of it."""

    scan: Scan
    sums: tuple[int, ...]  # pixels, three sums, three sums of squares over the measured images
    side: int
    rejected: tuple[str, ...]


def write_note(note: Path, written: Written, packing: dict[str, Any]) -> None:
    shard = written.scan.shard
    plain = {
        "packing": packing, "bytes": shard.bytes, "head": shard.head, "sha256": shard.sha256, "sums": written.sums,
        "side": written.side, "rejected": written.rejected, "keys": written.scan.keys,
    }  # fmt: skip
    with replacing(note) as file:
        np.savez(file, records=written.scan.records, plain=np.frombuffer(json.dumps(plain).encode(), np.uint8))


def read_note(note: Path, path: Path, name: str, packing: dict[str, Any]) -> Written | None:
    """What a finished shard holds; None where it or its note is missing, damaged or of another packing."""
    try:
        with np.load(note) as loaded:
            records, plain = loaded["records"], json.loads(loaded["plain"].tobytes())
        good = plain["packing"] == packing and path.stat().st_size == plain["bytes"] and head_of(path) == plain["head"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    if not good:
        return None
    shard = Shard(name, plain["bytes"], len(records), plain["head"], plain["sha256"])
    return Written(Scan(shard, records, tuple(plain["keys"])), tuple(plain["sums"]), plain["side"], tuple(plain["rejected"]))


def is_whole(out: Path, entry: SplitEntry) -> bool:
    """Whether every shard and the index of a packed split are still as the manifest says."""
    if notes_folder(out, entry.index.removesuffix(".index")).exists() or not (out / entry.index).is_file():
        return False
    paths = [out / shard.name for shard in entry.shards]
    if not all(path.is_file() and path.stat().st_size == shard.bytes for path, shard in zip(paths, entry.shards)):
        return False
    with open(out / entry.index, "rb") as file:
        index_good = hashlib.file_digest(file, "sha256").hexdigest() == entry.index_sha256
    return index_good and all(head_of(path) == shard.head for path, shard in zip(paths, entry.shards))
