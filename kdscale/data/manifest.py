"""``manifest.json``: what belongs to a data set, and how each part is recognised.

The manifest is small and says which shards there are; where the samples lie in them is in one binary index a split
(``index.py``). The identity of a split leaves out names, folders and checksums of samples, so data may be moved and
indexed again without becoming other data.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from kdscale.errors import DataError

from .files import replacing

FORMAT = "kdscale-data/1"
NAME = "manifest.json"
CARD_MARK = "<!-- written by kdscale data; without this line it is yours and stays -->"
_ENDS = 4096  # bytes at either end of a shard that its cheap identity reads

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Shard:
    name: str  # path below the manifest's folder, or an absolute one
    bytes: int
    samples: int
    head: str  # CRC-32 of both ends and the size
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """One split as the manifest holds it."""

    num_samples: int
    index: str
    index_sha256: str
    identity: str
    label_runs: float  # share of neighbours in storage order with equal labels
    crc: bool
    shards: tuple[Shard, ...]
    size: int | None = None  # pixels of the short side of the first image
    mean: Triple | None = None  # of pixels in [0, 1]
    std: Triple | None = None
    packing: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    num_classes: int
    classes: tuple[str, ...] = ()
    splits: dict[str, SplitEntry] = field(default_factory=dict)

    def with_split(self, name: str, entry: SplitEntry) -> Manifest:
        return replace(self, splits={**self.splits, name: entry})


_READ = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``; None where there is none. DataError: a file that is no manifest of this format."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        text = path.read_bytes()
        form = json.loads(text)["format"]
        if form != FORMAT:
            raise DataError(f"{path} is of format {form}, this version reads {FORMAT}: index the shards again")
        manifest = _READ.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place, value = ".".join(map(str, first["loc"])), repr(first["input"])[:60]
        raise DataError(
            f"{path} is not a manifest of kdscale: {place} is {value} ({first['msg']}); index the shards again"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest of kdscale ({error!r}): index the shards again") from None
    if manifest.num_classes < 0 or (manifest.classes and len(manifest.classes) != manifest.num_classes):
        names = f" and names {len(manifest.classes)}" if manifest.classes else ""
        raise DataError(f"{path} has num_classes {manifest.num_classes}{names}: restore it, or index the shards again")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``, and a data card ``README.md`` unless somebody wrote one."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n"
    with replacing(folder / NAME) as file:
        file.write(text.encode())
    card = folder / "README.md"
    if not card.exists() or card.read_text(errors="replace").startswith(CARD_MARK):
        with replacing(card) as file:
            file.write(_card(manifest).encode())


def _card(manifest: Manifest) -> str:
    lines = [
        CARD_MARK,
        f"# {manifest.name}",
        "",
        f"{manifest.num_classes} classes, as webdataset shards with a kdscale manifest.",
        "",
    ]
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        lines.append(f"* {name}: {split.num_samples} samples, {len(split.shards)} shards, {size} bytes, {split.identity}")
    return "\n".join(lines) + "\n"


def identity(shards: Sequence[Shard], records: NDArray[Any]) -> str:
    """SHA-256 of what the samples of a split are and where: counts, sizes, offsets, labels and hashes of keys."""
    digest = hashlib.sha256(f"{len(records)}".encode())
    for shard in shards:
        digest.update(f";{shard.samples},{shard.bytes}".encode())
    for column in ("offset", "size", "label", "key_hash"):
        digest.update(records[column].tobytes())
    return digest.hexdigest()


def head_of(path: Path) -> str:
    """The cheap identity of a file: a CRC-32, in hexadecimal, of its first and last 4096 bytes and its size."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return f"{zlib.crc32(str(size).encode(), zlib.crc32(file.read(_ENDS), zlib.crc32(first))):08x}"
