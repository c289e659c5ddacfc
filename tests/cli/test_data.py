"""``kdscale data pack`` and ``index``: what they report, and each thing that cannot be packed or indexed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from tests.cli import spoiling
from tests.cli.calling import done, kdscale, refused


def test_a_folder_of_pictures_is_packed_once(tmp_path: Path) -> None:
    source, out = spoiling.photos(tmp_path / "photos"), tmp_path / "shards"
    told = done("data", "pack", source, out, "-j", "1")
    assert told.startswith(f"{out}: train of 24 samples, 4 classes, 1 shards; identity ")
    assert "1 shards (1 kept)" in done("data", "pack", source, out, "-j", "1")
    assert "val of 24 samples" in done("data", "pack", source, out, "--split", "val", "-j", "1")
    assert "already holds a split train of other data" in refused("data", "pack", source, out, "--shuffle-seed", "3", "-j", "1")


def test_somebodys_tars_are_indexed(tmp_path: Path) -> None:
    folder = spoiling.tars(tmp_path / "tars", [0, 1, 2, 3] * 3)
    assert done("data", "index", folder, "-j", "1").startswith(f"{folder}: train of 12 samples, 4 classes, 1 shards; identity ")
    assert (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("spoil", "why"), [(lambda raw: raw[: len(raw) // 2], "runcated"), (lambda raw: b"text" * 50, "identify")]
)
def test_a_picture_that_does_not_decode(tmp_path: Path, spoil: spoiling.Bytes, why: str) -> None:
    source = spoiling.photos(tmp_path / "photos")
    bad = source / "b" / "3.jpg"
    bad.write_bytes(spoil(bad.read_bytes()))
    line = refused("data", "pack", source, tmp_path / "out", "-j", "1")
    assert str(bad) in line
    assert why in line
    skipped = kdscale("data", "pack", source, tmp_path / "out", "-j", "1", "--skip-bad")
    assert skipped.code == 0
    assert "23 samples" in skipped.out
    assert "1 pictures left out" in skipped.out
    assert str(bad) in (tmp_path / "out" / "rejected-train.txt").read_text()


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    def saved(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Path:
        np.save(tmp_path / name, array)
        return tmp_path / name

    images, floats = saved("i.npy", np.zeros((5, 8, 8, 3), np.uint8)), saved("f.npy", np.zeros((5, 8, 8, 3), np.float32))
    four, negative = saved("four.npy", np.arange(4)), saved("negative.npy", np.array([0, 1, 2, -1, 0]))
    five = saved("five.npy", np.arange(5))
    out = tmp_path / "out"
    assert "5 images and 4 labels" in refused("data", "pack", f"{images},{four}", out)
    assert "label -1" in refused("data", "pack", f"{images},{negative}", out)
    assert "float32" in refused("data", "pack", f"{floats},{five}", out)
    assert "give the labels too" in refused("data", "pack", images, out)
    assert done("data", "pack", f"{images},{five}", out, "-j", "1").startswith(f"{out}: train of 5 samples, 5 classes")


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nothing to pack at" in refused("data", "pack", tmp_path / "nowhere", tmp_path / "out")
    assert "holds no images" in refused("data", "pack", tmp_path / "empty", tmp_path / "out")
    assert "there is no data at" in refused("data", "index", tmp_path / "nowhere")
    assert "neither a manifest.json nor a .tar" in refused("data", "index", tmp_path / "empty")
    line = refused("data", "index", spoiling.photos(tmp_path / "photos"))
    assert "is a folder of pictures, not of shards" in line
    assert "kdscale data pack" in line


def test_a_target_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    line = refused("data", "pack", spoiling.photos(tmp_path / "photos", each=1), tmp_path / "taken")
    assert "taken" in line
    assert "Not a directory" in line


def test_words_that_are_no_names_of_files(tmp_path: Path) -> None:
    source = spoiling.photos(tmp_path / "photos", each=1)
    for words in (("--split", "a b/c"), ("--split", ""), ("--name", "x/y")):
        assert "is no name of a file" in refused("data", "pack", source, tmp_path / "out", "-j", "1", *words)
    assert "is no name of a file" in refused("data", "index", source, "--split", "a/b")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    source, out = spoiling.photos(tmp_path / "photos"), tmp_path / "out"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, old[1]))
    try:
        line = refused("data", "pack", source, out, "-j", "1", code=70)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert line.startswith(f"{out} takes no more (")
    assert "train of 24 samples" in done("data", "pack", source, out, "-j", "1")


def test_a_held_out_split_without_one_of_the_classes(tmp_path: Path) -> None:
    train, val = spoiling.photos(tmp_path / "train", "abcd", 1), spoiling.photos(tmp_path / "val", "acd", 1)
    out = tmp_path / "out"
    done("data", "pack", train, out, "-j", "1")
    words = ("data", "pack", val, out, "--split", "val", "-j", "1")
    line = refused(*words)
    assert line.endswith(f"first difference at index 1: b / c: --classes {out}/classes.json keeps those of train")
    assert "val of 3 samples, 4 classes" in done(*words, "--classes", out / "classes.json")


def test_tars_that_cannot_be_indexed(tmp_path: Path) -> None:
    cut = spoiling.tars(tmp_path / "cut", [0, 1, 2, 3])
    os.truncate(spoiling.shard(cut), 3000)
    line = refused("data", "index", cut, "-j", "1")
    assert "x-train-000000.tar" in line
    assert "truncated" in line
    assert "no tar header" in refused("data", "index", __file__, "-j", "1")
    assert "is not a whole number" in refused("data", "index", spoiling.tars(tmp_path / "cat", [0, "cat", 1]), "-j", "1")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    five = spoiling.tars(tmp_path / "five", [0, 1, 2, 3, 4])
    assert "outside 0..2 (3 classes)" in refused("data", "index", five, "--classes", tmp_path / "classes.txt", "-j", "1")
    assert "no file of classes" in refused("data", "index", five, "--classes", tmp_path / "none.txt", "-j", "1")
    assert "has no label foo" in refused("data", "index", five, "--label", "foo", "-j", "1")
