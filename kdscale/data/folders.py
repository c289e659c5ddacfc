"""A folder of class folders as a source: which files belong to it, and what is left out, in one line.

Links to folders are followed, except to a folder that they lie in. What starts with a dot and ``__MACOSX`` is no class and
no picture. Names are compared and stored as UTF-8 whatever the locale says, so that a shard is the same bytes under each.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdscale.errors import DataError

from .pictures import Picture, verified

log = logging.getLogger(__name__)

Integers = NDArray[np.int64]

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
ARCHIVE_FOLDER = "__MACOSX"
"""Where zips that were made on macOS keep what is no part of their files."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """``root/CLASS/**/image``; ``numbers``: the place of each file among all, which begins its key."""

    root: Path
    files: tuple[str, ...]
    labels: Integers
    numbers: Integers
    names: tuple[str, ...]

    @property
    def sizes(self) -> Integers:
        return np.array([size for size, _ in self._stats()], np.int64)

    @property
    def fingerprint(self) -> str:
        """Of names, sizes, times and labels: a picture that was drawn anew in as many bytes is another one."""
        digest = hashlib.sha256()
        for file, (size, time), label in zip(self.files, self._stats(), self.labels.tolist()):
            digest.update(b"%s\0%d\0%d\0%d\n" % (os.fsencode(file), size, time, label))
        digest.update("\0".join(self.names).encode())
        return digest.hexdigest()

    @property
    def former(self) -> str:
        """Without times."""
        lines = [f"{file}\0{size}\0{label}\n" for file, size, label in zip(self.files, self.sizes, self.labels)]
        return hashlib.sha256("".join((*lines, *self.names)).encode(errors="surrogateescape")).hexdigest()

    def _stats(self) -> list[tuple[int, int]]:
        """(bytes, nanoseconds of the last change) of each file, zeros for a link to nothing."""
        return [_size_and_time(os.path.join(self.root, file)) for file in self.files]

    def take(self, places: Integers) -> FolderSource:
        files = tuple(self.files[place] for place in places)
        return FolderSource(self.root, files, self.labels[places], self.numbers[places], self.names)

    def picture(self, place: int) -> Picture:
        path = self.root / self.files[place]
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", as_text(path.stem))[:60]
        try:
            data = path.read_bytes()
        except OSError as error:
            what = f"is a link to {os.readlink(path)}, which is not there" if _leads_nowhere(path) else _unread(error)
            raise DataError(f"{path} {what}: mend it, remove it, or pack with --skip-bad") from None
        extension, data, pixels = verified(data, str(path))
        return Picture(f"{self.numbers[place]:08d}-{stem}", extension, data, pixels, int(self.labels[place]))


@dataclass(slots=True)
class Found:
    """What lies in a folder of class folders. Paths from there, with ``/``."""

    files: list[str] = field(default_factory=list)  # sorted
    classes: list[str] = field(default_factory=list)  # the first folders, sorted
    hidden: list[str] = field(default_factory=list)  # files, and folders with all that they hold
    loops: list[str] = field(default_factory=list)  # links to a folder that they lie in
    others: Counter[str] = field(default_factory=Counter)  # files that are no pictures, by their endings

    def __str__(self) -> str:
        """What was left out; empty where that is nothing."""
        endings = " ".join(sorted(self.others))
        parts = (
            f"{len(self.hidden)} hidden files and folders (first {min(self.hidden)})" if self.hidden else "",
            f"{len(self.loops)} links into a circle (first {min(self.loops)})" if self.loops else "",
            f"{self.others.total()} files that are no pictures ({endings})" if self.others else "",
        )
        return ", ".join(filter(None, parts))


def folder_source(root: Path, classes: tuple[str, ...]) -> FolderSource:
    """Classes are the first folders, sorted, unless ``classes`` gives their order. DataError: a class without pictures."""
    found = look_through(root)
    if not found.files:
        raise DataError(f"{root} holds no images; one folder a class is read, with images in it")
    if str(found):
        log.warning("left out of %s: %s", root, found)
    flat = next((file for file in found.files if "/" not in file), None)
    if flat is not None:
        raise DataError(f"{root / flat} lies in no class: put the images of each class into a folder of its own under {root}")
    of_file = [as_text(file.split("/", 1)[0]) for file in found.files]
    if not classes:
        _refuse_empty(root, found)
    names = classes or tuple(as_text(name) for name in found.classes)
    numbers = {name: number for number, name in enumerate(names)}
    unknown = next((name for name in of_file if name not in numbers), None)
    if unknown is not None:
        raise DataError(f"folder {root / unknown} is none of the {len(names)} classes given")
    labels = np.array([numbers[name] for name in of_file], np.int64)
    return FolderSource(root, tuple(found.files), labels, np.arange(len(labels)), names)


def _refuse_empty(root: Path, found: Found) -> None:
    """A class that vanished would give all classes behind it another number."""
    empty = sorted(set(found.classes) - {file.split("/", 1)[0] for file in found.files})
    if empty:
        more = f" (nor do {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise DataError(
            f"class folder {root / empty[0]} holds no pictures{more}: remove it, or keep its number by --classes FILE, a list of "
            "all class names"
        )


def look_through(root: Path) -> Found:
    """All files below ``root``, through links too."""
    found = Found()
    _enter(str(root), "", (os.path.realpath(root),), found)
    found.files.sort(key=lambda file: file.split("/"))
    found.classes.sort()
    return found


def _enter(folder: str, name: str, inside: tuple[str, ...], found: Found) -> None:
    """``inside``: the real paths of the folder and of all that it lies in."""
    with os.scandir(folder) as entries:
        for entry in entries:
            below = f"{name}/{entry.name}" if name else entry.name
            if entry.name.startswith(".") or entry.name == ARCHIVE_FOLDER:
                found.hidden.append(below)
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(inside[-1], entry.name)
                if real in inside:
                    found.loops.append(below)
                    continue
                if not name:
                    found.classes.append(entry.name)
                _enter(entry.path, below, (*inside, real), found)
            elif os.path.splitext(entry.name)[1].lower() in PICTURES:
                found.files.append(below)
            elif not name and _leads_nowhere(entry.path):
                raise DataError(
                    f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there: mend it or remove it"
                )
            else:
                found.others[os.path.splitext(entry.name)[1].lower() or entry.name] += 1


def as_text(name: str) -> str:
    """The UTF-8 that a name on the disk is, also where the locale is another."""
    return os.fsencode(name).decode(errors="replace")


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0  # told by its name when it is read
    return found.st_size, found.st_mtime_ns


def _leads_nowhere(path: str | Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _unread(error: OSError) -> str:
    return f"cannot be read ({error.strerror})"
