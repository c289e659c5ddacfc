"""The sample that ships inside the package: 10 000 + 2 000 images of Fashion-MNIST (Zalando SE, MIT licence), as sheets.

Each sheet is one class: 28x28 grey images, 25 a row. They are packed into real shards before use, like anybody's arrays.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .packing import pack_arrays

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIDE, PER_ROW = 28, 25


def pack_sample(out: Path) -> None:
    """Packs both splits into ``out`` (``train`` and ``val``), once: what is already there and whole is kept."""
    for split, folder in (("train", "train"), ("val", "test")):
        images, labels = sheets(folder)
        pack_arrays(images, labels, str(out), split=split, name="fashion-mnist-sample", names=CLASSES)


def sheets(folder: str) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]]]:
    """(images [N,28,28,1] uint8, labels [N]) of ``train`` or ``test``, class by class."""
    images, labels = [], []
    for label in range(len(CLASSES)):
        with files("kdscale").joinpath(f"samples/fashion_mnist/{folder}/{label}.png").open("rb") as file:
            sheet = np.asarray(Image.open(file))
        rows = sheet.reshape(-1, SIDE, PER_ROW, SIDE).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 1)
        images.append(rows)
        labels.append(np.full(len(rows), label, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)
