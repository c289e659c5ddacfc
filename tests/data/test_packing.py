"""Packing gives the same bytes however it is run, finishes what was interrupted, and says what it cannot read."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from kdscale.data import open_split, pack, pack_arrays
from kdscale.data.indexing import label_runs
from kdscale.data.packing import cut_shards, mean_and_deviation, pixel_sums
from kdscale.data.records import RECORD
from kdscale.data.scan import scan
from kdscale.errors import DataError
from kdscale.recipe.data import Data

from .conftest import CLASSES, IMAGES, picture, write_folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def noise(images: int, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Arrays that fill several shards of the smallest size."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (images, side, side, 3), dtype=np.uint8), np.arange(images) % 5


def test_images_keep_their_bytes_and_classes_are_sorted_folders(folder: Path, packed: Path) -> None:
    samples = list(webdataset.WebDataset(str(packed / "train" / "small-train-000000.tar"), shardshuffle=False))
    assert len(samples) == IMAGES
    for sample in samples[:5]:
        number = sample["__key__"].rpartition("_")[2]
        name = CLASSES[int(sample["cls"])]
        assert sample["jpg"] == (folder / name / f"img {number}.jpg").read_bytes()
    split = open_split(Data(str(packed)), "train")
    assert split.info.names == CLASSES
    assert sorted(split.info.labels.tolist()) == sorted(list(range(3)) * 32)  # type: ignore[union-attr]


def test_repeated_and_parallel_packing_is_byte_equal(tmp_path: Path) -> None:
    images, labels = noise(60)
    for name, jobs in (("one", 1), ("two", 2)):
        report = pack_arrays(images, labels, tmp_path / name, split="train", name="x", shard_mb=1, jobs=jobs)
    assert report.shards == 2
    first = digests(tmp_path / "one")
    assert first == digests(tmp_path / "two")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar")}
    again = pack_arrays(images, labels, tmp_path / "one", split="train", name="x", shard_mb=1)
    assert (again.kept, again.identity) == (report.shards, report.identity)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar")}


def test_interrupted_packing_is_refused_by_readers_and_finished_by_the_same_command(tmp_path: Path) -> None:
    images, labels = noise(60)
    pack_arrays(images, labels, tmp_path / "whole", split="train", name="x", shard_mb=1)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_arrays(images, labels, tmp_path / "cut", split="train", name="x", shard_mb=1, on_progress=interrupt)
    with pytest.raises(DataError, match="packing did not finish; run the same pack command again"):
        open_split(Data(str(tmp_path / "cut")), "train")
    tars = sorted((tmp_path / "cut").rglob("*.tar"))
    tars[0].write_bytes(b"damaged meanwhile")
    report = pack_arrays(images, labels, tmp_path / "cut", split="train", name="x", shard_mb=1)
    assert report.kept == len(tars) - 1
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_other_data_under_the_same_split_is_refused(tmp_path: Path) -> None:
    images, labels = noise(4)
    pack_arrays(images, labels, tmp_path, split="train")
    with pytest.raises(DataError, match="already holds a split train of other data"):
        pack_arrays(images[:3], labels[:3], tmp_path, split="train")


def test_splits_must_agree_on_classes(tmp_path: Path) -> None:
    images, labels = noise(4)
    pack_arrays(images, labels, tmp_path, split="train", names=("a", "b", "c", "d", "e"))
    with pytest.raises(
        DataError,
        match=r"train has classes 5, val 5; first difference at index 1: b / x: --classes .*classes.json keeps those of train",
    ):
        pack_arrays(images, labels, tmp_path, split="val", names=("a", "x", "c", "d", "e"))


def test_pictures_that_do_not_decode(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "src", 6)
    bad = root / "ant" / "img 0.jpg"
    bad.write_bytes(bad.read_bytes()[:400])
    with pytest.raises(DataError, match=r"img 0.jpg cannot be decoded .*mend it, or pack with --skip-bad"):
        pack(str(root), str(tmp_path / "out"), split="train")
    report = pack(str(root), str(tmp_path / "out2"), split="train", skip_bad=True)
    assert report.samples == 5
    assert "img 0.jpg" in (tmp_path / "out2" / "rejected-train.txt").read_text()
    again = pack(str(root), str(tmp_path / "out2"), split="train", skip_bad=True)
    assert (again.rejected, again.kept) == (report.rejected, 1)
    assert "1 pictures left out (rejected-train.txt)" in str(again)


def test_forms_that_training_does_not_read_become_png(tmp_path: Path) -> None:
    (tmp_path / "src" / "ant").mkdir(parents=True)
    picture(1).convert("CMYK").save(tmp_path / "src" / "ant" / "a.jpg")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "src" / "ant" / "b.png")
    picture(2).save(tmp_path / "src" / "ant" / "c.bmp")
    picture(3).convert("L").save(tmp_path / "src" / "ant" / "d.jpg")
    report = pack(str(tmp_path / "src"), str(tmp_path / "out"), split="train", name="x", shuffle_seed=None)
    samples = list(webdataset.WebDataset(str(next((tmp_path / "out").rglob("*.tar"))), shardshuffle=False).decode("pilrgb"))
    assert [next(word for word in ("jpg", "png") if word in sample) for sample in samples] == ["png", "png", "png", "jpg"]
    assert np.asarray(samples[1]["png"]).max() == 40_000 >> 8
    assert report.size == min(picture(1).size)


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_arrays_from_files(tmp_path: Path, form: str) -> None:
    images, labels = noise(7, 12)
    if form == "npz":
        np.savez(tmp_path / "d.npz", x=images[..., 0], y=labels)
        source = str(tmp_path / "d.npz")
    else:
        np.save(tmp_path / "x.npy", images[..., :1])
        np.save(tmp_path / "y.npy", labels)
        source = f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"
    report = pack(source, str(tmp_path / "out"), split="train", shuffle_seed=None)
    tar = next((tmp_path / "out").rglob("*.tar"))
    stored = [np.asarray(s["png"])[..., 0] for s in webdataset.WebDataset(str(tar), shardshuffle=False).decode("pil")]
    assert np.array_equal(np.stack(stored), images[..., 0])
    assert (report.samples, report.classes, report.size) == (7, 5, 12)


def test_pickles_and_wrong_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object))
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], object), y=np.zeros(1, int))
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "whole.npz", x=np.zeros((9, 9, 9), np.uint8), y=np.zeros(9, int))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:700])
    (tmp_path / "empty.npy").touch()
    for name in ("objects.npy", "objects.npz", "pickled.npz", "cut.npz", "empty.npy"):
        with pytest.raises(DataError, match=f"{name} is neither an image folder nor whole arrays .*give a folder") as caught:
            pack(str(tmp_path / name), str(tmp_path / "out"), split="train")
        assert "allow_pickle" not in str(caught.value)
    with pytest.raises(DataError, match=r"float64 \(2, 4, 4, 3\)"):
        pack_arrays(np.zeros((2, 4, 4, 3)), np.zeros(2, int), tmp_path / "out", split="train")
    with pytest.raises(DataError, match=r"images is \(2, 0, 4, 3\), images without a pixel"):
        pack_arrays(np.zeros((2, 0, 4, 3), np.uint8), np.zeros(2, int), tmp_path / "out", split="train")
    with pytest.raises(DataError, match="label 9223372036854775808 of images is above 2147483647: number the classes"):
        pack_arrays(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1 << 63], np.uint64), tmp_path / "out", split="train")
    with pytest.raises(DataError, match=r"label 9 of images is outside 0..1 \(2 classes\)"):
        pack_arrays(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 9]), tmp_path / "out", split="train", names=("a", "b"))
    with pytest.raises(DataError, match="there is nothing to pack at"):
        pack(str(tmp_path / "nowhere"), str(tmp_path / "out"), split="train")


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    picture(1).save(tmp_path / "src" / "a.png")
    with pytest.raises(DataError, match=r"a.png lies in no class: put the images of each class into a folder"):
        pack(str(tmp_path / "src"), str(tmp_path / "out"), split="train")


def test_mean_deviation_and_size_are_the_pixels(folder: Path, packed: Path) -> None:
    pixels = np.concatenate([np.asarray(Image.open(path)).reshape(-1, 3) for path in sorted(folder.rglob("*.jpg"))]) / 255
    info = open_split(Data(str(packed)), "eval").info
    assert np.allclose(info.mean, pixels.mean(0), atol=1e-7)
    assert np.allclose(info.std, pixels.std(0), atol=1e-7)
    flat = pixel_sums(np.full((2, 2, 3), 7, np.uint8))
    assert mean_and_deviation(flat.tolist())[1] == (1.0, 1.0, 1.0)


def test_shards_are_cut_by_size() -> None:
    assert cut_shards(np.full(10, 952), 9000) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert cut_shards(np.array([5]), 1 << 20) == [(0, 1)]


def test_the_data_card_is_renewed_until_somebody_writes_it(tmp_path: Path) -> None:
    images, labels = noise(4)
    pack_arrays(images, labels, tmp_path, split="train")
    pack_arrays(images, labels, tmp_path, split="val")
    card = (tmp_path / "README.md").read_text()
    assert "* train: 4 samples" in card
    assert "* val: 4 samples" in card
    (tmp_path / "README.md").write_text("mine")
    pack_arrays(images, labels, tmp_path, split="test")
    assert (tmp_path / "README.md").read_text() == "mine"


def test_sorted_labels_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, _ = noise(40, 8)
    with caplog.at_level(logging.WARNING):
        pack_arrays(images, np.arange(40) // 4, tmp_path, split="train", shuffle_seed=None)
    assert "labels come in runs" in caplog.text


@pytest.mark.parametrize(
    ("labels", "runs"),
    [
        ([0] * 95 + [1] * 5, None),  # shuffled below
        ([0, 0, 1], False),
        ([0, 0, 1, 1], False),
        ([0] * 950 + [1] * 50, True),
        ([0, 1] * 50, False),
    ],
)
def test_labels_come_in_runs_where_they_do_more_than_by_chance(
    labels: list[int], runs: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    records = np.zeros(len(labels), RECORD)
    records["label"] = labels if runs is not None else np.random.default_rng(0).permutation(labels)
    label_runs(records)
    assert ("labels come in runs" in caplog.text) == bool(runs)


@pytest.mark.parametrize("word", ["a b/c", "..", ""])
def test_names_that_are_no_names_of_files(tmp_path: Path, word: str) -> None:
    images, labels = noise(2)
    for names in ({"split": word}, {"split": "train", "name": word or "x/y"}):
        with pytest.raises(DataError, match="is no name of a file"):
            pack_arrays(images, labels, tmp_path / "out", **names)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_takes_no_more_and_then_does(tmp_path: Path) -> None:
    """The shell's limit on a file's size, which the system tells as it tells a full disk: without the file's name."""
    images, labels = noise(60)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, old[1]))
    try:
        with pytest.raises(DataError, match=r"out takes no more .*make room there, and give the same command again") as full:
            pack_arrays(images, labels, tmp_path / "out", split="train", name="x", shard_mb=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert full.value.code == 70
    assert pack_arrays(images, labels, tmp_path / "out", split="train", name="x", shard_mb=1).kept == 1
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == [f"x-train-00000{n}.tar" for n in (0, 1)]


def test_manifest_holds_what_the_shards_hold(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    tar = packed / "train" / "small-train-000000.tar"
    shard = manifest["splits"]["train"]["shards"][0]
    assert shard["sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()
    assert shard["samples"] == len(scan(tar, "x").keys) == IMAGES
    assert not list(packed.glob(".packing*"))
