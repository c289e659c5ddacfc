"""A small image folder, made here, and the shards that packing makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdscale.data import index, pack

CLASSES = ("ant", "bee", "cow")
IMAGES = 96


def picture(number: int) -> Image.Image:
    """A smooth picture of its own size and colours, so that JPEG and resizing behave as on photographs."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((40 + number % 17, 36 + number % 11), Image.Resampling.BICUBIC)


def write_folder(root: Path, images: int = IMAGES) -> Path:
    for number in range(images):
        folder = root / CLASSES[number % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"img {number}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits of the same 96 images, as one shard each. Tests that damage it take a copy."""
    out = tmp_path_factory.mktemp("packed")
    pack(str(folder), str(out), split="train", name="small")
    pack(str(folder), str(out), split="val", name="small")
    return out


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 real photographs, indexed as both splits."""
    from tests.shared import shared

    source, out = shared("data", "imagenet-sample"), tmp_path_factory.mktemp("photos")
    for split in ("train", "val"):
        index(str(source), split=split, out=str(out))
    return out
