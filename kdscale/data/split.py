"""A split that is ready to be read: every shard is there, has its size and its ends, and the index is the manifest's.

The checks cost one ``stat`` and two small reads a shard. Tars without a manifest are indexed by their headers into a
temporary folder first, and then are a data set like any other (without checksums of samples).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from kdscale.errors import DataError
from kdscale.recipe.data import Data
from kdscale.types import DatasetInfo

from .indexing import index
from .locate import find, is_list, shards_of, unfinished
from .manifest import NAME, Manifest, Shard, SplitEntry, Triple, head_of, read_manifest
from .records import Counts, Records, open_records
from .scan import key_at

log = logging.getLogger(__name__)

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CHECKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Split:
    """One split of a data set. Pickles by path: the maps are opened anew in each process."""

    name: str
    root: Path
    shards: tuple[Path, ...]
    index_path: Path
    counts: Counts  # [shards + 1], cumulative samples
    records: Records  # [samples] of RECORD
    crc: bool  # whether the records hold checksums
    info: DatasetInfo

    def __len__(self) -> int:
        return len(self.records)

    def shard_of(self, sample: int) -> Path:
        return self.shards[int(self.counts.searchsorted(sample, "right")) - 1]

    def describe(self, sample: int) -> str:
        """``sample KEY in SHARD at OFFSET``: for messages, it reads the headers of the shard."""
        shard, offset = self.shard_of(sample), int(self.records["offset"][sample])
        return f"sample {key_at(shard, offset)} in {shard.name} at {offset}"

    def __reduce__(self) -> tuple[object, ...]:
        info = self.info
        plain = (info.identity, info.samples, info.classes, None, info.mean, info.std, info.size, info.names)
        return _opened, (self.name, self.root, self.shards, self.index_path, self.crc, plain)


def _opened(name: str, root: Path, shards: tuple[Path, ...], index_path: Path, crc: bool, plain: tuple[object, ...]) -> Split:
    counts, records = open_records(index_path)
    identity, samples, classes, _, *rest = plain
    info = DatasetInfo(identity, samples, classes, records["label"], *rest)  # type: ignore[arg-type]
    return Split(name, root, shards, index_path, counts, records, crc, info)


def open_split(data: Data, which: Literal["train", "eval"]) -> Split:
    """The training or evaluation split of ``data``, checked. DataError, in one line, for all that is missing or damaged."""
    name = data.train_split if which == "train" else data.eval_split
    if not is_list(data.source):
        folder = find(data.source)
        manifest = read_manifest(folder) if folder.is_dir() else None
        if manifest is not None:
            return _from_manifest(data, manifest, folder, name)
        if folder.is_dir() and unfinished(folder, name):
            raise DataError(f"{folder}: shards but no manifest: packing did not finish; run the same pack command again")
    return _without_manifest(data, name)


def _from_manifest(data: Data, manifest: Manifest, root: Path, name: str) -> Split:
    entry = manifest.splits.get(name)
    if entry is None:
        if unfinished(root, name):
            raise DataError(f"{root}: packing of split {name} did not finish; run the same pack command again")
        there = ", ".join(manifest.splits) or "none"
        raise DataError(f"{root} has no split {name}; it has {there}: set train_split or eval_split to one of them")
    if not entry.shards:
        raise DataError(f"split {name} of {root} has no shards: pack or index it again")
    if not entry.num_samples:
        raise DataError(f"split {name} of {root} has no samples")
    paths = tuple(root / shard.name for shard in entry.shards)
    _check_shards(entry.shards, paths)
    counts, records = _checked_index(entry, root / entry.index)
    info = _info(data, manifest, entry, records)
    return Split(name, root, paths, root / entry.index, counts, records, entry.crc, info)


def _check_shards(shards: tuple[Shard, ...], paths: tuple[Path, ...]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"shard {missing[0].name} is missing ({len(missing)} of {len(paths)} missing); first looked at {missing[0]}"
        )
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as threads:
        for _ in threads.map(_check_shard, shards, paths):
            pass


def _check_shard(shard: Shard, path: Path) -> None:
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(
            f"shard {shard.name} is {size} bytes, manifest says {shard.bytes}: truncated or replaced; restore it or index again"
        )
    head = head_of(path)
    if head != shard.head:
        raise DataError(
            f"shard {shard.name} has the right size but other content (head {head}, manifest says {shard.head}): "
            "restore it or index again"
        )


def _checked_index(entry: SplitEntry, path: Path) -> tuple[Counts, Records]:
    if not path.is_file():
        raise DataError(f"the index {path} is missing: index the shards again")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    counts, records = open_records(path)
    if digest != entry.index_sha256 or counts.tolist() != np.cumsum([0, *(shard.samples for shard in entry.shards)]).tolist():
        raise DataError(f"the index {path} is not the one of its manifest: restore it or index the shards again")
    if entry.num_samples != len(records):
        raise DataError(
            f"{path.parent / NAME} says {entry.num_samples} samples and the index {path.name} holds {len(records)}: restore it or "
            "index the shards again"
        )
    return counts, records


def _info(data: Data, manifest: Manifest, entry: SplitEntry, records: Records) -> DatasetInfo:
    """Normalisation is the training split's for every split: the recipe's own, what packing measured, or ImageNet's."""
    labels = records["label"]
    if int(labels.max()) >= manifest.num_classes:
        sample = int(np.argmax(labels))
        raise DataError(f"label {labels[sample]} of sample {sample} is outside 0..{manifest.num_classes - 1}: index again")
    measured = manifest.splits.get(data.train_split, entry)
    return DatasetInfo(
        identity=entry.identity,
        samples=len(records),
        classes=manifest.num_classes,
        labels=labels,
        mean=data.mean or measured.mean or IMAGENET[0],
        std=data.std or measured.std or IMAGENET[1],
        size=(measured.size or data.train.size) if data.train.crop == "none" else data.train.size,
        names=manifest.classes,
    )


@cache
def _say_that_headers_are_read(source: str, shards: int) -> None:
    """Once a process: a command opens its splits several times."""
    log.warning("%s has no manifest: reading the headers of %d shards (kdscale data index does it once)", source, shards)


def _without_manifest(data: Data, name: str) -> Split:
    """Tars alone, indexed by their headers into a folder that lives as long as the split does."""
    paths, _ = shards_of(data.source, name)
    if name != data.train_split and paths == shards_of(data.source, data.train_split)[0]:
        raise DataError(
            f"{data.source} holds one set of shards for both splits: to evaluate on it set eval_split={data.train_split}"
        )
    _say_that_headers_are_read(data.source, len(paths))
    folder = Path(tempfile.mkdtemp(prefix="kdscale-index-"))
    try:
        index(data.source, split=name, crc=False, label=data.label, out=str(folder))
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"{folder} vanished while {data.source} was indexed: is something cleaning the temporary folder?")
        split = _from_manifest(data, manifest, folder, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(split, shutil.rmtree, folder, ignore_errors=True)
    return split
