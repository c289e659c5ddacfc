"""Images become shards: always shuffled, the same bytes each time, complete or not there.

Which sample goes into which shard is fixed before any work, so whole shards are written in parallel. Each finished shard
leaves a note of what it holds; an interrupted packing that is started again keeps the shards whose notes still hold. Index
and manifest come last: shards without a manifest are a packing that did not finish, and readers say so.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdscale.errors import DataError
from kdscale.keys import key, perm

from .files import replacing, room_in
from .folders import Integers
from .indexing import Progress, describe, read_classes
from .locate import check_name, notes_folder
from .manifest import Manifest, SplitEntry, Triple, read_manifest, write_manifest
from .notes import Written, is_whole, read_note, write_note
from .processes import pool
from .scan import scan
from .sources import Source, array_source, fewer, open_source, splits_of

log = logging.getLogger(__name__)

MEASURED = 10_000  # images whose pixels give mean and standard deviation
REJECTED = "rejected-{}.txt"
TAR_OVERHEAD = 2048  # bytes a sample takes in a tar beside its image: two headers, padding, the label


@dataclass(frozen=True, slots=True)
class PackReport:
    folder: Path
    split: str
    samples: int
    shards: int
    classes: int
    identity: str
    mean: Triple
    std: Triple
    size: int  # pixels of the short side of the first image
    rejected: tuple[str, ...]  # what skip_bad left out
    kept: int  # shards that were there already, whole

    def __str__(self) -> str:
        left_out = f", {len(self.rejected)} pictures left out ({REJECTED.format(self.split)})" if self.rejected else ""
        kept = f" ({self.kept} kept)" if self.kept else ""
        return (
            f"{self.folder}: {self.split} of {self.samples} samples, {self.classes} classes, {self.shards} shards{kept}{left_out}; "
            f"identity {self.identity[:12]}"
        )


def pack(
    src: str,
    out: str,
    *,
    split: str,
    name: str | None = None,
    shard_mb: int = 256,
    shuffle_seed: int | None = 0,
    jobs: int = 1,
    classes_file: str | None = None,
    first_classes: int | None = None,
    per_class: int | None = None,
    skip_bad: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> PackReport:
    """Packs an image folder, a folder of class strips, an ``.npz`` or a pair ``images.npy,labels.npy`` into ``out``.

    ``split``: what it will be; of strips, which part of them is taken. ``first_classes`` and ``per_class`` (of each class,
    the first images in the source's order) leave the rest out. ``shuffle_seed`` None keeps the source's order.
    ``on_progress(shards done, shards)``. DataError: a picture that does not decode (unless ``skip_bad``, which lists it in
    ``rejected-SPLIT.txt``), a class without pictures, other data under the same split, other classes, a full disk.
    """
    classes = read_classes(Path(classes_file), required=True) if classes_file else ()
    source = open_source(src, split, classes)
    if first_classes is not None or per_class is not None:
        source = fewer(source, first_classes, per_class)
    return _pack(
        source, Path(out), split, name or Path(out).resolve().name, shard_mb, shuffle_seed, jobs, skip_bad, on_progress
    )


def pack_all(
    src: str, out: str, *, split: str | None = None, per_class: int | None = None, **settings: Any
) -> Iterator[PackReport]:
    """:func:`pack` of ``split``, or of each split that the source itself holds, else of ``train``; a report as each is done.

    Of a source with splits of its own, ``per_class`` leaves the images for evaluation whole.
    """
    own = splits_of(src)
    for name in (split,) if split is not None else own or ("train",):
        yield pack(src, out, split=name, per_class=None if own and name != "train" else per_class, **settings)


def pack_arrays(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    out: str | Path,
    *,
    split: str,
    names: Sequence[str] = (),
    name: str | None = None,
    shard_mb: int = 256,
    shuffle_seed: int | None = 0,
    jobs: int = 1,
    on_progress: Progress = lambda done, total: None,
) -> PackReport:
    """Packs arrays that are in memory: uint8 [N, H, W, C] or [N, H, W], labels [N], class names. As :func:`pack`."""
    source = array_source(images, labels, tuple(names))
    folder = Path(out)
    return _pack(source, folder, split, name or folder.resolve().name, shard_mb, shuffle_seed, jobs, False, on_progress)


def _pack(
    source: Source,
    out: Path,
    split: str,
    name: str,
    shard_mb: int,
    seed: int | None,
    jobs: int,
    skip_bad: bool,
    on_progress: Progress,
) -> PackReport:
    check_name(split, "split")
    check_name(name, "name")
    order = shuffled(len(source.labels), seed)
    shards = cut_shards(source.sizes[order], shard_mb << 20)
    packing = {"source": source.fingerprint, "shuffle_seed": seed, "shard_mb": shard_mb, "skip_bad": skip_bad}
    manifest = read_manifest(out)
    if manifest is not None and split in manifest.splits:
        if manifest.splits[split].packing != packing | {"source": source.former}:
            _refuse_other(out, split, manifest.splits[split].packing, packing)
        if is_whole(out, manifest.splits[split]):
            on_progress(len(shards), len(shards))
            return _report(out, split, manifest, manifest.splits[split], _left_out(out, split), len(shards))
    notes = notes_folder(out, split)
    tasks = []
    for number, (start, stop) in enumerate(shards):
        path = out / split / f"{name}-{split}-{number:06d}.tar"
        part = source.take(order[start:stop])
        measured = max(0, min(stop, MEASURED) - start)
        tasks.append(partial(write_shard, part, path, f"{split}/{path.name}", notes, packing, measured, skip_bad))
    with room_in(out):
        notes.mkdir(parents=True, exist_ok=True)
        written, kept = _write_all(tasks, jobs, on_progress)
        return _finish(source, out, split, name, packing, written, kept)


def _refuse_other(out: Path, split: str, before: dict[str, Any] | None, packing: dict[str, Any]) -> None:
    if before == packing:
        return
    words = {"source": "the pictures' names, sizes, times or labels"}
    differ = [words.get(name, name) for name in packing if (before or {}).get(name) != packing[name]]
    raise DataError(
        f"{out} already holds a split {split} of other data or settings ({', '.join(differ)} changed): give another folder, or "
        "delete this one"
    )


def shuffled(number: int, seed: int | None) -> Integers:
    """The order of packing: the permutation that the seed names, or the source's own."""
    places = np.arange(number, dtype=np.uint64)
    if seed is None:
        return places.astype(np.int64)
    placed: Integers = perm(places, np.full_like(places, number), np.full_like(places, key(seed))).astype(np.int64)
    return placed


def cut_shards(sizes: Integers, limit: int) -> list[tuple[int, int]]:
    """[start, stop) of each shard: a new one begins with the sample that passes the next multiple of ``limit`` bytes."""
    ends = np.cumsum(sizes + TAR_OVERHEAD)
    number = (ends - 1) // limit
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return list(pairwise(starts))


def write_shard(
    part: Source, path: Path, name: str, notes: Path, packing: dict[str, Any], measured: int, skip_bad: bool
) -> tuple[Written, bool]:
    """Writes one shard, or finds it written; (what it holds, whether it was there). Runs in a process of the pool."""
    note = notes / f"{path.name}.npz"
    found = read_note(note, path, name, packing)
    if found is not None:
        return found, True
    from webdataset import TarWriter

    sums, side, rejected = np.zeros(7, np.int64), 0, []
    with replacing(path) as file, TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False) as tar:
        for place in range(len(part.labels)):
            try:
                picture = part.picture(place)
            except DataError as error:
                if not skip_bad:
                    raise
                rejected.append(str(error))
                continue
            tar.write({"__key__": picture.key, "cls": str(picture.label).encode(), picture.extension: picture.data})
            side = side or min(picture.pixels.shape[:2])
            if place < measured:
                sums += pixel_sums(picture.pixels)
    written = Written(scan(path, name, "cls"), tuple(sums.tolist()), side, tuple(rejected))
    write_note(note, written, packing)
    return written, False


def pixel_sums(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number of pixels, sums of the three channels, sums of their squares: exact, so shards may be added in any order."""
    counts = np.stack([np.bincount(pixels[..., channel].reshape(-1), minlength=256) for channel in range(3)])
    values = np.arange(256, dtype=np.int64)
    return np.concatenate([[pixels.shape[0] * pixels.shape[1]], counts @ values, counts @ values**2]).astype(np.int64)


def _write_all(
    tasks: Sequence[Callable[[], tuple[Written, bool]]], jobs: int, on_progress: Progress
) -> tuple[list[Written], int]:
    results: dict[int, tuple[Written, bool]] = {}
    with pool(min(jobs, len(tasks))) as submit:
        futures = {submit(task): number for number, task in enumerate(tasks)}
        for done, future in enumerate(as_completed(futures), 1):
            results[futures[future]] = future.result()
            on_progress(done, len(tasks))
    in_order = [results[number] for number in range(len(tasks))]
    return [written for written, _ in in_order], sum(there for _, there in in_order)


def _finish(
    source: Source, out: Path, split: str, name: str, packing: dict[str, Any], written: list[Written], kept: int
) -> PackReport:
    """Classes, index and manifest; then the notes, no longer needed, go."""
    manifest, entry, _ = describe(out, split, [one.scan for one in written], source.names, name=name, crc=True)
    mean, std = mean_and_deviation([sum(column) for column in zip(*(one.sums for one in written))])
    size = next(one.side for one in written if one.side)
    rejected = tuple(line for one in written for line in one.rejected)
    entry = replace(entry, size=size, mean=mean, std=std, packing=packing)
    _write_lists(out, manifest, split, rejected)
    write_manifest(out, manifest.with_split(split, entry))
    shutil.rmtree(notes_folder(out, split))
    return _report(out, split, manifest, entry, rejected, kept)


def _report(out: Path, split: str, manifest: Manifest, entry: SplitEntry, rejected: tuple[str, ...], kept: int) -> PackReport:
    return PackReport(
        folder=out,
        split=split,
        samples=entry.num_samples,
        shards=len(entry.shards),
        classes=manifest.num_classes,
        identity=entry.identity,
        mean=entry.mean or (0.0, 0.0, 0.0),
        std=entry.std or (1.0, 1.0, 1.0),
        size=entry.size or 0,
        rejected=rejected,
        kept=kept,
    )


def _left_out(out: Path, split: str) -> tuple[str, ...]:
    """What an earlier packing left out."""
    path = out / REJECTED.format(split)
    text = path.read_bytes().decode(errors="surrogateescape") if path.is_file() else ""
    return tuple(filter(None, text.split("\n")))


def _write_lists(out: Path, manifest: Manifest, split: str, rejected: tuple[str, ...]) -> None:
    if manifest.classes:
        lines = [{"index": number, "id": name, "name": name} for number, name in enumerate(manifest.classes)]
        with replacing(out / "classes.json") as file:
            file.write(json.dumps(lines, indent=1).encode() + b"\n")
    path = out / REJECTED.format(split)
    if rejected:
        log.warning("%d pictures were left out: %s", len(rejected), path)
        with replacing(path) as file:
            file.write("".join(f"{line}\n" for line in rejected).encode(errors="surrogateescape"))
    else:
        path.unlink(missing_ok=True)


def mean_and_deviation(sums: Sequence[int]) -> tuple[Triple, Triple]:
    """Per channel, of pixels in [0, 1], to eight digits; a channel that never varies gets deviation 1."""
    count = max(1, sums[0])
    mean = [total / count for total in sums[1:4]]
    deviation = [max(0.0, square / count - average**2) ** 0.5 for square, average in zip(sums[4:7], mean)]
    means = tuple(round(value / 255, 8) for value in mean)
    deviations = tuple(round(value / 255, 8) or 1.0 for value in deviation)
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
