"""What a data source names: a folder with a manifest, a folder or list of tars, or a name under ``KDSCALE_DATA``."""

from __future__ import annotations

import glob
import os
from itertools import islice
from pathlib import Path

from kdscale.errors import DataError

from .files import TEMPORARY

ROOTS = "KDSCALE_DATA"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LOOKED_AT = 10_000  # entries of a folder that decide whether it is one of pictures


def find(source: str) -> Path:
    """The file or folder that ``source`` names, as a path or under one of the roots in the environment."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    roots = [Path(root) for root in os.environ.get(ROOTS, "").split(os.pathsep) if root]
    for root in roots:
        if (root / source).exists():
            return root / source
    where = (
        f"nor under {ROOTS} ({', '.join(map(str, roots))})" if roots else f"and {ROOTS}, the folders of data sets, is not set"
    )
    raise DataError(f"there is no data at {source}, {where}")


def is_list(source: str) -> bool:
    """Whether ``source`` is a glob or a brace list and not a path."""
    return any(mark in source for mark in "*?[{") and not Path(source).exists()


def shards_of(source: str, split: str) -> tuple[list[Path], Path]:
    """(tars of ``split``, folder they lie in) of a folder, a file, a glob or a brace list. DataError: none there."""
    if is_list(source):
        paths = [Path(found) for part in braces(source) for found in (sorted(glob.glob(part)) if _globbed(part) else [part])]
        folder = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    else:
        folder = find(source)
        paths = [folder] if folder.is_file() else _tars_in(folder, split)
        folder = folder.parent if folder.is_file() else folder
    for path in paths:
        if path.name.endswith(COMPRESSED):
            raise DataError(f"shard {path} is compressed, and samples are read by offset; decompress it")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"shard {missing[0].name} is missing ({len(missing)} of {len(paths)} missing); first looked at {missing[0]}"
        )
    if not paths:
        raise _nothing_in(source, folder, split)
    return paths, folder


def _tars_in(folder: Path, split: str) -> list[Path]:
    """Tars of a split by the usual layouts: ``split/*.tar``, ``*-split-*.tar``; any tars where no name says a split."""
    for pattern in (f"{split}/*", f"*-{split}-*", f"{split}-*", "*"):
        found = sorted(path for path in folder.glob(pattern) if path.name.endswith((".tar", *COMPRESSED)))
        if found:
            return found
    return []


def unfinished(folder: Path, split: str) -> bool:
    """Whether a packing of ``split`` into ``folder`` was interrupted: it leaves notes that its end removes."""
    return notes_folder(folder, split).is_dir() or any((folder / split).glob(f"*{TEMPORARY}*"))


def check_name(name: str, what: str) -> str:
    """``name``, which becomes part of the names of files. DataError where it cannot be."""
    if name in ("", ".", "..") or set(name) & {"/", "\0", os.sep}:
        raise DataError(f"{what} {name!r} is no name of a file: give a word without slashes")
    return name


def notes_folder(folder: Path, split: str) -> Path:
    return folder / f".packing-{split}"


def _nothing_in(source: str, folder: Path, split: str) -> DataError:
    looked_at = islice(folder.rglob("*"), _LOOKED_AT) if folder.is_dir() else iter(())
    if any(path.suffix.lower() in PICTURES for path in looked_at):
        return DataError(
            f"{source} is a folder of pictures, not of shards: run kdscale data pack {source} OUT --split {split} and give OUT"
        )
    return DataError(f"no shards of split {split} in {source}: there is neither a manifest.json nor a .tar")


def _globbed(part: str) -> bool:
    return any(mark in part for mark in "*?[")


def braces(text: str) -> list[str]:
    """``a{0..2}b`` -> a0b a1b a2b, with leading zeros kept; ``{x,y}`` too; several braces multiply."""
    start, end = text.find("{"), text.find("}")
    if start < 0 or end < start:
        return [text]
    before, inside, after = text[:start], text[start + 1 : end], text[end + 1 :]
    first, dots, last = inside.partition("..")
    if dots and first.isdigit() and last.isdigit():
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        words = inside.split(",")
    return [before + word + rest for word in words for rest in braces(after)]
