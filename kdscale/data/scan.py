"""What one shard holds: its samples, their labels and checksums. Keys and extensions are cut as webdataset cuts them.

A sample is a run of adjacent members with one key, the path up to the first dot after the last slash; it has exactly one
image. Everything that is neither its image nor its label is left alone.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.errors import DataError

from .manifest import Shard, head_of
from .records import RECORD, Records
from .tars import Member, members

IMAGES = ("jpg", "jpeg", "png", "webp")
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Scan:
    shard: Shard
    records: Records
    keys: tuple[str, ...]


def scan(path: Path, name: str, label: str = "auto", crc: bool = True) -> Scan:
    """Reads the headers of the shard at ``path``, and with ``crc`` all of its bytes once. ``name``: in the manifest.

    ``label``: ``auto``, ``cls`` or ``json:<dotted path>``. DataError: damaged tar, sample without exactly one image.
    """
    rows, keys = [], []
    with open(path, "rb") as file:
        size = path.stat().st_size
        if not size:
            raise DataError(f"shard {path} is empty: it is truncated; restore it")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for key, parts in samples(path):
                image = _image(path, key, parts)
                checksum = zlib.crc32(memoryview(data)[image.offset : image.offset + image.size]) if crc else 0
                place = (image.offset, image.size, checksum, _label(data, path, key, parts, label), zlib.crc32(key.encode()))
                rows.append(place)
                keys.append(key)
            digest = hashlib.sha256(data).hexdigest() if crc else None
    return Scan(Shard(name, size, len(rows), head_of(path), digest), np.array(rows, RECORD), tuple(keys))


def samples(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, {extension: member}) of each sample of a shard, in order."""
    for key, group in groupby(members(path), key=lambda member: split_name(member.name)[0]):
        if not key.rpartition("/")[2]:
            continue  # hidden files, which macOS puts beside others
        yield key, {split_name(member.name)[1]: member for member in group}


def split_name(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def key_at(path: Path, offset: int) -> str:
    """The key of the sample whose image is at ``offset``: for messages alone, it reads the shard's headers anew."""
    try:
        return next(split_name(member.name)[0] for member in members(path) if member.offset == offset)
    except (StopIteration, DataError, OSError):
        return "(unknown key)"


def _image(path: Path, key: str, parts: dict[str, Member]) -> Member:
    found = [extension for extension in parts if extension in IMAGES]
    if len(found) != 1:
        what = f"{len(found)} images ({', '.join(found)})" if found else f"no image ({', '.join(parts)})"
        raise DataError(f"sample {key} in {path} has {what}: each needs exactly one of {', '.join(IMAGES)}")
    return parts[found[0]]


def _label(data: mmap.mmap, path: Path, key: str, parts: dict[str, Member], label: str) -> int:
    field = label.removeprefix("json:") if label.startswith("json:") else "label"
    found: dict[str, int] = {}
    try:
        if label in ("auto", "cls") and "cls" in parts:
            found["cls"] = int(_bytes(data, parts["cls"]))
        if label != "cls" and "json" in parts:
            value: Any = json.loads(_bytes(data, parts["json"]))
            for step in field.split("."):
                value = value.get(step) if isinstance(value, dict) else None
            if value is not None:
                found["json"] = int(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"the label of sample {key} in {path} is not a whole number ({error})") from None
    if label != "auto" and not found:
        raise DataError(f"sample {key} in {path} has no label {label}: it holds {', '.join(parts)}")
    if len(set(found.values())) > 1:
        raise DataError(
            f"sample {key} in {path} has label {found['cls']} in cls and {found['json']} in json: say which by label"
        )
    return next(iter(found.values()), NO_LABEL)


def _bytes(data: mmap.mmap, member: Member) -> bytes:
    return data[member.offset : member.offset + member.size]
