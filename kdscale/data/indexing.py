"""Anybody's webdataset tars become a data set: a manifest and an offset index, beside them or in another folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdscale.errors import DataError

from .files import room_in
from .locate import check_name, shards_of
from .manifest import Manifest, SplitEntry, identity, read_manifest, write_manifest
from .processes import pool
from .records import RECORD, Counts, Records, write_records
from .scan import NO_LABEL, Scan, scan

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

RUNS = 0.05  # of the neighbours that chance leaves unequal
DEVIATIONS = 4.0  # of the share of equal neighbours in shuffled labels: so few samples prove nothing


@dataclass(frozen=True, slots=True)
class IndexReport:
    folder: Path  # where the manifest is
    split: str
    samples: int
    shards: int
    classes: int
    identity: str
    twins: int  # samples whose image has the size and checksum of another's

    def __str__(self) -> str:
        twins = f", {self.twins} of them the same image as another" if self.twins else ""
        return (
            f"{self.folder}: {self.split} of {self.samples} samples{twins}, {self.classes} classes, {self.shards} shards; "
            f"identity {self.identity[:12]}"
        )


def index(
    path_or_list: str,
    *,
    split: str,
    jobs: int = 1,
    crc: bool = True,
    label: str = "auto",
    out: str | None = None,
    classes_file: str | None = None,
    on_progress: Progress = lambda done, total: None,
) -> IndexReport:
    """Indexes a folder, glob or brace list of tars as ``split``; the manifest goes beside them, or under ``out``.

    Existing splits of the same manifest stay. ``crc`` reads all bytes once. DataError: no tars, damaged ones, a key twice,
    labels that only some samples have.
    """
    check_name(split, "split")
    paths, beside = shards_of(path_or_list, split)
    folder = Path(out) if out else beside
    names = [_name(path, folder) for path in paths]
    scans = scan_all([partial(scan, path, name, label, crc) for path, name in zip(paths, names)], jobs, on_progress)
    refuse_double_keys(scans, paths)
    refuse_missing_labels(scans, paths)
    classes = read_classes(Path(classes_file) if classes_file else paths[0].parent / "classes.json", bool(classes_file))
    before = read_manifest(folder)
    with room_in(folder):
        manifest, entry, records = describe(folder, split, scans, classes, name=beside.name, crc=crc)
        if before is not None and split in before.splits:
            entry = with_measures(entry, before.splits[split])
        write_manifest(folder, manifest.with_split(split, entry))
    if (records["label"] == NO_LABEL).all():
        log.warning("no sample of split %s has a label: --label json:FIELD says which field of a json is one", split)
    twins = count_twins(records) if crc else 0
    return IndexReport(folder, split, entry.num_samples, len(scans), manifest.num_classes, entry.identity, twins)


def scan_all(tasks: Sequence[Callable[[], Scan]], jobs: int, on_progress: Progress) -> list[Scan]:
    """Runs the scans in ``jobs`` processes, whole shards each; results in the order of the tasks."""
    results: list[Scan | None] = [None] * len(tasks)
    with pool(min(jobs, len(tasks))) as submit:
        futures = {submit(task): number for number, task in enumerate(tasks)}
        for done, future in enumerate(as_completed(futures), 1):
            results[futures[future]] = future.result()
            on_progress(done, len(tasks))
    return [result for result in results if result is not None]


def describe(
    folder: Path, split: str, scans: Sequence[Scan], classes: tuple[str, ...], *, name: str, crc: bool
) -> tuple[Manifest, SplitEntry, Records]:
    """Writes the split's index; (manifest that the split will join, its entry, its records). Splits must agree on classes."""
    records = np.concatenate([result.records for result in scans]) if scans else np.empty(0, RECORD)
    if not len(records):
        raise DataError(f"split {split} has no samples")
    counts: Counts = np.cumsum([0, *(result.shard.samples for result in scans)]).astype(np.int64)
    largest = int(records["label"].max())
    manifest = joined(read_manifest(folder), split, name, classes, largest, folder / "classes.json")
    shards = tuple(result.shard for result in scans)
    entry = SplitEntry(
        num_samples=len(records),
        index=f"{split}.index",
        index_sha256=write_records(folder / f"{split}.index", counts, records),
        identity=identity(shards, records),
        label_runs=label_runs(records),
        crc=crc,
        shards=shards,
    )
    return manifest, entry, records


def with_measures(entry: SplitEntry, before: SplitEntry) -> SplitEntry:
    """What packing measured of the pixels stays true of the same samples."""
    if entry.identity != before.identity:
        return entry
    return replace(entry, size=before.size, mean=before.mean, std=before.std, packing=before.packing)


def joined(manifest: Manifest | None, split: str, name: str, classes: tuple[str, ...], largest: int, listed: Path) -> Manifest:
    """The manifest that ``split`` joins; DataError where its classes are not those of the splits already there, ``listed``."""
    number = len(classes) or largest + 1
    if largest >= number:
        raise DataError(f"label {largest} of split {split} is outside 0..{number - 1} ({number} classes)")
    if manifest is None or set(manifest.splits) <= {split}:
        return Manifest(name, number, classes)
    if manifest.classes and classes and manifest.classes != classes:
        pairs = [*zip(manifest.classes, classes), (f"{len(manifest.classes)} in all", f"{len(classes)} in all")]
        at = next(place for place, (old, new) in enumerate(pairs) if old != new)
        there = ", ".join(manifest.splits)
        cure = f"--classes {listed} keeps those of {there}" if listed.is_file() else "give all splits the same --classes FILE"
        raise DataError(
            f"{there} has classes {len(manifest.classes)}, {split} {len(classes)}; "
            f"first difference at index {at}: {pairs[at][0]} / {pairs[at][1]}: {cure}"
        )
    both = classes or manifest.classes
    return Manifest(manifest.name, len(both) or max(number, manifest.num_classes), both, manifest.splits)


def label_runs(records: Records) -> float:
    """Share of neighbours with equal labels; warns where the shards are sorted by class."""
    labels = records["label"]
    pairs = max(1, len(labels) - 1)
    share = float((labels[1:] == labels[:-1]).sum()) / pairs
    counts = np.unique(labels, return_counts=True)[1].astype(float)
    by_chance = float((counts * (counts - 1)).sum()) / (len(labels) * pairs)
    margin = max(RUNS * (1 - by_chance), DEVIATIONS * (by_chance * (1 - by_chance) / pairs) ** 0.5)
    if labels.max() >= 0 and share > by_chance + margin:
        log.warning(
            "labels come in runs (%.0f %% of neighbours are equal, %.0f %% by chance): pack anew shuffled, or set order.block=1",
            100 * share,
            100 * by_chance,
        )
    return round(share, 6)


def count_twins(records: Records) -> int:
    """Samples whose image has the size and the checksum of an earlier one: almost surely the same bytes."""
    pairs = records["size"].astype(np.uint64) << np.uint64(32) | records["crc32"].astype(np.uint64)
    return len(pairs) - len(np.unique(pairs))


def refuse_double_keys(scans: Sequence[Scan], paths: Sequence[Path]) -> None:
    """DataError if a key occurs twice in the split; equal hashes alone are settled by the keys themselves."""
    hashes = np.concatenate([result.records["key_hash"] for result in scans])
    values, times = np.unique(hashes, return_counts=True)
    suspects = set(values[times > 1].tolist())
    seen: dict[str, Path] = {}
    for result, path in zip(scans, paths) if suspects else ():
        for key, hashed in zip(result.keys, result.records["key_hash"].tolist()):
            if hashed in suspects:
                if key in seen:
                    raise DataError(f"key {key} occurs in {seen[key]} and {path}: each sample of a split needs its own")
                seen[key] = path


def refuse_missing_labels(scans: Sequence[Scan], paths: Sequence[Path]) -> None:
    """DataError naming the first sample without a label, where others have one."""
    missing = [result.records["label"] == NO_LABEL for result in scans]
    count, samples = sum(int(part.sum()) for part in missing), sum(map(len, missing))
    if 0 < count < samples:
        shard = next(place for place, part in enumerate(missing) if part.any())
        key = scans[shard].keys[int(missing[shard].argmax())]
        raise DataError(
            f"sample {key} in {paths[shard]} has no label ({count} of {samples} have none): give each a label, or none of them"
        )


def read_classes(path: Path, required: bool = False) -> tuple[str, ...]:
    """Names of the classes in order: a JSON list of names or of objects with ``name`` (and ``index``), or a line each."""
    if not path.is_file():
        if required:
            raise DataError(f"there is no file of classes at {path}")
        return ()
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        raw: Any = json.loads(text)
        if raw and isinstance(raw[0], dict):
            raw = [entry.get("name") or entry["id"] for entry in sorted(raw, key=lambda entry: int(entry["index"]))]
        return tuple(str(name) for name in raw)
    except (ValueError, KeyError, TypeError) as error:
        if not required:
            return ()
        raise DataError(f"{path} is not a list of class names ({error!r})") from None


def _name(path: Path, folder: Path) -> str:
    """A shard below the manifest's folder is named from there, so that the whole may be moved."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
