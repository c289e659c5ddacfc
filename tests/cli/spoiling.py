"""Data sets with one thing wrong in each."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Bytes = Callable[[bytes], bytes]
SIDE = 20


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tars(folder: Path, labels: Sequence[object], spoil: Bytes = lambda raw: raw) -> Path:
    """Splits ``train`` and ``val`` of somebody's webdataset; the third picture of each goes through ``spoil``."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        with tarfile.open(folder / split / f"x-{split}-000000.tar", "w") as tar:
            for number, label in enumerate(labels):
                raw = picture(number)
                add(tar, f"{number:05d}.jpg", spoil(raw) if number == 2 else raw)
                add(tar, f"{number:05d}.cls", str(label).encode())
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def photos(folder: Path, classes: str = "abcd", each: int = 6) -> Path:
    """A folder of class folders."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            (folder / name / f"{number}.jpg").write_bytes(picture(each * place + number))
    return folder


def copied(data: Path, folder: Path) -> Path:
    return Path(shutil.copytree(data, folder))


def shard(folder: Path) -> Path:
    return next((folder / "train").glob("*.tar"))


def missing(folder: Path) -> None:
    shard(folder).unlink()


def truncated(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size // 2)


def replaced(folder: Path) -> None:
    """Another shard of the same size."""
    raw = bytearray(shard(folder).read_bytes())
    raw[600] ^= 0xFF
    shard(folder).write_bytes(bytes(raw))


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def without_index(folder: Path) -> None:
    (folder / "train.index").unlink()
