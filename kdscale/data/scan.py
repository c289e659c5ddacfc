"""What one shard holds: its samples, their labels and checksums. Keys and extensions are cut as webdataset cuts them.

A sample is a run of adjacent members with one key, the path up to the first dot after the last slash; it has exactly one
image. Everything that is neither its image nor its label is left alone.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
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
SHOWN = 60  # letters of a wrong label
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,20}\s*")
LARGEST_LABEL = (1 << 31) - 1  # that a record of the index holds


@dataclass(frozen=True, slots=True)
class Scan:
    shard: Shard
    records: Records
    keys: tuple[str, ...]


def scan(path: Path, name: str, label: str = "auto", crc: bool = True) -> Scan:
    """Reads the headers of the shard at ``path``, and with ``crc`` all of its bytes once. ``name``: in the manifest.

    ``label``: ``auto``, ``cls`` or ``json:<dotted path>``. DataError: damaged tar, sample without exactly one image of some
    bytes, label that is no class's number.
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
        parts: dict[str, Member] = {}
        for member in group:
            extension = split_name(member.name)[1]
            if extension in parts and extension in (*IMAGES, "cls", "json"):
                raise DataError(f"two samples with the key {key} lie side by side in {path}: each needs its own; write it anew")
            parts[extension] = member
        yield key, parts


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
    image = parts[found[0]]
    if not image.size:
        raise DataError(f"the image of sample {key} in {path}, {image.name}, has 0 bytes: write the shard anew")
    return image


def _label(data: mmap.mmap, path: Path, key: str, parts: dict[str, Member], label: str) -> int:
    """NO_LABEL where nothing says one and none was asked for by name. DataError: one that was asked for is not there, labels that
    differ, no number of a class."""
    field = label.removeprefix("json:") if label.startswith("json:") else "label"
    sample, held, found = f"sample {key} in {path}", f"it holds {', '.join(parts)}", dict[str, int]()
    if label in ("auto", "cls") and "cls" in parts:
        found["cls"] = _number(_bytes(data, parts["cls"]).decode(errors="replace"), sample)
    if label != "cls" and "json" in parts:
        document = _parsed(_bytes(data, parts["json"]), sample)
        value: Any = document
        for step in field.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            found["json"] = _number(value, sample)
        else:
            fields = ", ".join(document) if isinstance(document, dict) else ""
            held = f"its json has {fields}; say which by --label json:FIELD" if fields else "its json has no fields"
    if not found and label != "auto":
        raise DataError(f"{sample} has no label {label}: {held}")
    if len(set(found.values())) > 1:
        raise DataError(f"{sample} has label {found['cls']} in cls and {found['json']} in json: say which by label")
    return next(iter(found.values()), NO_LABEL)


def _number(value: Any, sample: str) -> int:
    """A label as cls or json gives it; -1 says that there is none. ``True`` and 1.7 are numbers for Python alone."""
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole and not (isinstance(value, str) and _WHOLE.fullmatch(value)):
        raise DataError(f"label {shown(value)} of {sample} is not a whole number: number the classes from 0")
    number = int(value)
    if not NO_LABEL <= number <= LARGEST_LABEL:
        raise DataError(f"label {shown(value)} of {sample} is outside 0..{LARGEST_LABEL}: number the classes from 0")
    return number


def shown(value: Any) -> str:
    """On one line, and not all of a long text."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _parsed(data: bytes, sample: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"the json of {sample} cannot be read ({error}): write the shard anew") from None


def _bytes(data: mmap.mmap, member: Member) -> bytes:
    return data[member.offset : member.offset + member.size]
