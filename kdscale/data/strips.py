"""A folder of class strips: each file one class, its square images one below the other in the order of the original set.

``train/NN.webp`` and ``test/NN.webp`` hold class NN; ``train-order.npy`` says which class the official training file has
at each place, so that a training image has its official number, whatever file it came from. ``classes.json`` names the
classes under "fine". CIFAR-100 (Krizhevsky 2009) is passed around in this form without a loss and without pickles.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdscale.errors import DataError

ORDER, CLASSES = "train-order.npy", "classes.json"
FOLDERS = {"train": "train", "val": "test"}
"""Split -> folder of its strips."""


def is_strips(path: Path) -> bool:
    return all((path / name).is_file() for name in (ORDER, CLASSES)) and all(
        (path / name).is_dir() for name in FOLDERS.values()
    )


def read_strips(root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """(images [N, S, S, 3], labels [N], class names). DataError names the file that is missing or does not fit the others."""
    if split not in FOLDERS:
        raise DataError(f"{root} holds the splits {' and '.join(FOLDERS)}, not {split}: give one of them, or none for both")
    names = _class_names(root / CLASSES)
    parts = [_strip(root / FOLDERS[split] / f"{label:02d}.webp") for label in range(len(names))]
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"the strips of {root / FOLDERS[split]} differ in width: each image of a set has the same sides")
    counts = [len(part) for part in parts]
    images, labels = np.concatenate(parts), np.repeat(np.arange(len(parts)), counts)
    if split != "train":
        return images, labels, names
    order = _order(root / ORDER)
    if not np.array_equal(np.bincount(order, minlength=len(names)), counts):
        raise DataError(f"{root / ORDER} counts other images than the strips hold: get the whole folder anew")
    official = np.empty_like(images)
    official[np.argsort(order, kind="stable")] = images
    return official, order, names


def _class_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(str(name) for name in json.loads(path.read_text())["fine"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not list class names under 'fine' ({error!r}): get the whole folder anew") from None
    if not names:
        raise DataError(f"{path} lists no class names under 'fine': get the whole folder anew")
    return names


def _order(path: Path) -> NDArray[np.int64]:
    try:
        labels = np.asarray(np.load(path)).reshape(-1).astype(np.int64)
    except (ValueError, OSError, EOFError):
        labels = np.full(1, -1)
    if (labels < 0).any():
        raise DataError(f"{path} is not an array of labels: get the whole folder anew")
    return labels


def _strip(path: Path) -> NDArray[np.uint8]:
    try:
        pixels = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        reason = str(error).split(" <", 1)[0]
        raise DataError(f"strip {path} cannot be read ({reason}): get the whole folder anew") from None
    height, side = pixels.shape[:2]
    if height % side:
        raise DataError(f"strip {path} is {side} wide and {height} high, which is no whole number of square images")
    return pixels.reshape(-1, side, side, 3)
