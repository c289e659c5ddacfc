"""What can be packed: a folder of images (a class a first folder), a folder of class strips, arrays. Pickles are not read.

A source knows its labels, a size for each sample from which shards are planned, and a fingerprint; ``take`` cuts out what
one process needs. Files keep their bytes, unless they are of a form that training does not read.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdscale.errors import DataError

from .folders import FolderSource, Integers, folder_source
from .pictures import Picture, png
from .scan import LARGEST_LABEL
from .strips import FOLDERS, is_strips, read_strips

_IMAGE_NAMES, _LABEL_NAMES = ("images", "x", "x_train"), ("labels", "y", "y_train")


class Source(Protocol):
    @property
    def labels(self) -> Integers: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes; empty: numbers."""

    @property
    def sizes(self) -> Integers: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def former(self) -> str:
        """The fingerprint that earlier versions gave; what they packed stays as it is."""

    def take(self, places: Integers) -> Source: ...

    def picture(self, place: int) -> Picture: ...


@dataclass(frozen=True, slots=True)
class ArraySource:
    """uint8 images [N, H, W, C] (or [N, H, W]) with a label each, stored as PNG."""

    images: NDArray[np.uint8]
    labels: Integers
    numbers: Integers
    names: tuple[str, ...]

    @property
    def sizes(self) -> Integers:
        return np.full(len(self.images), int(np.prod(self.images.shape[1:])), np.int64)

    @property
    def fingerprint(self) -> str:
        contents = zlib.crc32(np.ascontiguousarray(self.images).data), zlib.crc32(self.labels.tobytes())
        return hashlib.sha256(repr((self.images.shape, contents, self.names)).encode()).hexdigest()

    @property
    def former(self) -> str:
        return self.fingerprint

    def take(self, places: Integers) -> ArraySource:
        return ArraySource(self.images[places], self.labels[places], self.numbers[places], self.names)

    def picture(self, place: int) -> Picture:
        image = self.images[place]
        data, pixels = png(Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image))
        return Picture(f"{self.numbers[place]:08d}", "png", data, pixels, int(self.labels[place]))


def open_source(src: str, split: str, classes: tuple[str, ...]) -> FolderSource | ArraySource:
    """``src``: an image folder, a folder of class strips, of which ``split`` is taken, a ``.npz`` of images and labels, or
    ``images.npy`` beside ``labels.npy`` (a comma between)."""
    paths = _paths(src)
    if is_strips(paths[0]):
        images, labels, names = read_strips(paths[0], split)
        return array_source(images, labels, classes or names, src)
    if len(paths) == 1 and paths[0].is_dir():
        return folder_source(paths[0], classes)
    return array_source(*_arrays(paths), classes, src)


def _paths(src: str) -> list[Path]:
    """The one path that ``src`` is, else the two around a comma: names may hold commas too."""
    whole = Path(src).expanduser()
    if whole.exists():
        return [whole]
    commas = [place for place, letter in enumerate(src) if letter == ","]
    pairs = [[Path(part).expanduser() for part in (src[:place], src[place + 1 :])] for place in commas]
    missing = [[path for path in pair if not path.exists()] for pair in pairs]
    for pair, gone in zip(pairs, missing):
        if not gone:
            return pair
    half = next((gone[0] for gone in missing if len(gone) == 1), whole)
    raise DataError(f"there is nothing to pack at {half}")


def splits_of(src: str) -> tuple[str, ...]:
    """The splits that one source holds and names itself; empty: it is one split, which its user names."""
    return tuple(FOLDERS) if is_strips(Path(src).expanduser()) else ()


def fewer(source: FolderSource | ArraySource, classes: int | None, per_class: int | None) -> FolderSource | ArraySource:
    """``source`` without what is beyond its first ``classes`` classes and the first ``per_class`` images of each."""
    names, labels = source.names, source.labels
    if classes is not None:
        there = len(names) or int(labels.max()) + 1
        if classes > there:
            raise DataError(f"the first {classes} classes were asked for, and there are {there}")
        names = names[:classes]
    kept = np.full(len(labels), True) if classes is None else labels < classes
    if per_class is not None:
        kept &= occurrence(labels) < per_class
    if not kept.any():
        raise DataError("the classes asked for have no images: ask for more of them")
    return replace(source.take(np.flatnonzero(kept)), names=names)


def occurrence(labels: Integers) -> Integers:
    """How many of the entries before it have the label of each entry."""
    by_label = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_label], labels[by_label])
    found = np.empty_like(labels)
    found[by_label] = np.arange(len(labels)) - starts
    return found


def array_source(images: Any, labels: Any, names: tuple[str, ...], what: str = "images") -> ArraySource:
    """Checks shapes, types and labels of arrays. DataError names what does not fit."""
    images, labels = np.asarray(images), np.asarray(labels).reshape(-1)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(f"{what} is {images.dtype} {images.shape}; uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W] can be packed")
    if len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{what} has {len(images)} images and {len(labels)} labels of type {labels.dtype}; each needs a whole number"
        )
    if not len(images):
        raise DataError(f"{what} holds no images")
    if not images.size:
        raise DataError(f"{what} is {images.shape}, images without a pixel: store them anew")
    number = len(names) or int(labels.max()) + 1
    if labels.max() > LARGEST_LABEL:
        raise DataError(f"label {labels.max()} of {what} is above {LARGEST_LABEL}: number the classes from 0")
    if labels.min() < 0 or labels.max() >= number:
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"label {bad} of {what} is outside 0..{number - 1} ({number} classes)")
    return ArraySource(images, labels.astype(np.int64), np.arange(len(images)), names)


def _arrays(paths: list[Path]) -> tuple[Any, Any]:
    loaded = [_loaded(path) for path in paths]
    if len(loaded) == 2:
        return loaded[0], loaded[1]
    if isinstance(loaded[0], np.ndarray):
        raise DataError(f"{paths[0]} is one array: give the labels too, as {paths[0]},LABELS.npy")
    found = [next((name for name in names if name in loaded[0]), None) for names in (_IMAGE_NAMES, _LABEL_NAMES)]
    if None in found:
        raise DataError(f"{paths[0]} holds {', '.join(loaded[0])}; it needs images and labels (or x and y)")
    try:
        return loaded[0][found[0]], loaded[0][found[1]]
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error):
        raise _no_arrays(paths[0]) from None


def _loaded(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r" if path.suffix == ".npy" else None)
    except PermissionError:
        raise DataError(f"{path} may not be read: give yourself the right to") from None
    except (ValueError, OSError, EOFError, BadZipFile):
        raise _no_arrays(path) from None


def _no_arrays(path: Path) -> DataError:
    """numpy's own words are kept back: they advise to load pickles."""
    return DataError(
        f"{path} is neither an image folder nor whole arrays of numbers (pickled objects are not read);"
        " give a folder, .npz or two .npy"
    )
