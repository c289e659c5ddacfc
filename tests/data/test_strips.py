"""A folder of class strips becomes both splits, with the official numbers; fewer classes or images of any source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset import WebDataset

from kdscale.data import open_split, pack, pack_all, pack_arrays
from kdscale.data.sources import array_source, fewer, occurrence
from kdscale.errors import DataError
from kdscale.recipe.data import Data
from tests.cli.calling import done, refused

NAMES = ("apple", "baby", "bear")
TRAIN = np.array([2, 0, 0, 1, 2, 1, 0, 2, 1, 0, 1, 2], np.uint8)
SIDE = 8


def image(label: int, number: int) -> np.ndarray:
    return np.random.default_rng([label, number]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def strips(tmp_path: Path) -> Path:
    root = tmp_path / "strips"
    for folder, count in (("train", 4), ("test", 2)):
        (root / folder).mkdir(parents=True)
        for label in range(len(NAMES)):
            pixels = np.concatenate([image(label, number + 100 * (folder == "test")) for number in range(count)])
            Image.fromarray(pixels).save(root / folder / f"{label:02d}.webp", lossless=True)
    (root / "classes.json").write_text(json.dumps({"fine": NAMES, "coarse": ["x"]}))
    np.save(root / "train-order.npy", TRAIN)
    return root


def stored(folder: Path, split: str) -> list[tuple[str, int, np.ndarray]]:
    tar = next((folder / split).glob("*.tar"))
    samples = WebDataset(str(tar), shardshuffle=False).decode("pil")
    return [(one["__key__"], one["cls"], np.asarray(one["png"])) for one in samples]


def test_both_splits_in_the_official_numbering(strips: Path, tmp_path: Path) -> None:
    told = done("data", "pack", strips, tmp_path / "out", "-j", "1").splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in told] == ["train of 12 samples", "val of 6 samples"]
    rank = {number: int((TRAIN[:number] == TRAIN[number]).sum()) for number in range(len(TRAIN))}
    found = stored(tmp_path / "out", "train")
    assert sorted(int(key) for key, _, _ in found) == list(range(12))
    for key, label, pixels in found:
        assert label == TRAIN[int(key)]
        assert np.array_equal(pixels, image(label, rank[int(key)]))
    for key, label, pixels in stored(tmp_path / "out", "val"):
        assert np.array_equal(pixels, image(label, 100 + int(key) % 2))
    assert open_split(Data(str(tmp_path / "out")), "eval").info.names == NAMES


def test_kept_order_is_the_official_one(strips: Path, tmp_path: Path) -> None:
    pack(str(strips), str(tmp_path / "out"), split="train", shuffle_seed=None)
    assert [label for _, label, _ in stored(tmp_path / "out", "train")] == TRAIN.tolist()


def test_fewer_classes_and_images_leave_the_test_images_whole(strips: Path, tmp_path: Path) -> None:
    words = ("data", "pack", strips, tmp_path / "out", "-j", "1", "--classes", "2", "--per-class", "3")
    done(*words)
    found = stored(tmp_path / "out", "train")
    assert sorted(int(key) for key, _, _ in found) == [1, 2, 3, 5, 6, 8]
    assert len(stored(tmp_path / "out", "val")) == 4
    info = open_split(Data(str(tmp_path / "out")), "train").info
    assert (info.classes, info.names) == (2, NAMES[:2])
    done(*words)
    assert "other data or settings" in refused(*words[:-1], "2")


def test_any_source_can_be_cut(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 4, 4, 3), np.uint8), np.array([1, 0, 1, 2, 1, 0])
    cut = fewer(array_source(images, labels, ()), 2, 2)
    assert cut.labels.tolist() == [1, 0, 1, 0]
    assert occurrence(labels).tolist() == [0, 0, 1, 0, 2, 1]
    with pytest.raises(DataError, match="first 4 classes were asked for, and there are 3"):
        fewer(array_source(images, labels, ()), 4, None)
    identities = {pack_arrays(images[:n], labels[:n], tmp_path / str(n), split="train").identity for n in (4, 6)}
    assert len(identities) == 2


def test_a_split_may_be_packed_alone(strips: Path, tmp_path: Path) -> None:
    reports = list(pack_all(str(strips), str(tmp_path / "out"), split="val", per_class=1))
    assert [(report.split, report.samples) for report in reports] == [("val", 6)]
    with pytest.raises(DataError, match="holds the splits train and val, not test"):
        list(pack_all(str(strips), str(tmp_path / "out"), split="test"))


def test_folders_that_are_not_whole(strips: Path, tmp_path: Path) -> None:
    np.save(strips / "train-order.npy", np.full(4, -1))
    with pytest.raises(DataError, match=r"train-order.npy is not an array of labels"):
        pack(str(strips), str(tmp_path / "out"), split="train")
    np.save(strips / "train-order.npy", TRAIN[::2])
    with pytest.raises(DataError, match=r"train-order.npy counts other images than the strips hold"):
        pack(str(strips), str(tmp_path / "out"), split="train")
    (strips / "train" / "01.webp").unlink()
    with pytest.raises(DataError, match=r"strip .*01.webp cannot be read \(.*No such file.*get the whole folder anew"):
        pack(str(strips), str(tmp_path / "out"), split="train")
    (strips / "classes.json").write_text('{"fine": []}')
    with pytest.raises(DataError, match="lists no class names"):
        pack(str(strips), str(tmp_path / "out"), split="train")
    (strips / "classes.json").write_text("[]")
    with pytest.raises(DataError, match="does not list class names under 'fine'"):
        pack(str(strips), str(tmp_path / "out"), split="train")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(strips / "test" / "00.webp")
    (strips / "classes.json").write_text(json.dumps({"fine": ["a"]}))
    with pytest.raises(DataError, match="8 wide and 9 high"):
        pack(str(strips), str(tmp_path / "out"), split="val")
