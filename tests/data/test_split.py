"""Splits that open, and every way in which they do not: one line each, with what to do."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdscale.data import index, open_split, pack_arrays
from kdscale.data.locate import braces
from kdscale.errors import DataError
from kdscale.recipe.data import Data

from .conftest import IMAGES, write_folder


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def tar_of(folder: Path) -> Path:
    return folder / "train" / "small-train-000000.tar"


def refused(source: Path | str, words: str, which: str = "train", **more: object) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_split(Data(str(source), **more), which)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_identity_survives_moving_and_indexing_anew(packed: Path, copy: Path, tmp_path: Path) -> None:
    identity = open_split(Data(str(packed)), "train").info.identity
    assert open_split(Data(str(copy)), "train").info.identity == identity
    index(str(copy / "train"), split="train", out=str(tmp_path / "anew"), crc=False)
    assert open_split(Data(str(tmp_path / "anew")), "train").info.identity == identity


def test_names_under_the_roots_of_the_environment(packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDSCALE_DATA", f"{tmp_path}:{packed.parent}")
    assert len(open_split(Data(packed.name), "train")) == IMAGES
    refused("other", f"there is no data at other, nor under KDSCALE_DATA .*{tmp_path.name}")


def test_a_split_pickles_by_path(packed: Path) -> None:
    split = open_split(Data(str(packed)), "train")
    twin = pickle.loads(pickle.dumps(split))
    assert np.array_equal(twin.records, split.records)
    assert twin.info.names == split.info.names
    assert len(pickle.dumps(split)) < 2000


def test_normalisation_is_the_training_splits_unless_given(packed: Path) -> None:
    train, held = (open_split(Data(str(packed)), which).info for which in ("train", "eval"))
    assert (train.mean, train.std) == (held.mean, held.std)
    assert open_split(Data(str(packed), mean=(0.1, 0.2, 0.3)), "eval").info.mean == (0.1, 0.2, 0.3)


def test_path_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDSCALE_DATA", raising=False)
    refused("/nowhere/at/all", "there is no data at /nowhere/at/all")


def test_missing_shard_counts_all(copy: Path) -> None:
    tar_of(copy).unlink()
    refused(copy, r"shard small-train-000000.tar is missing \(1 of 1 missing\); first looked at /")


def test_truncated_shard(copy: Path) -> None:
    tar = tar_of(copy)
    tar.write_bytes(tar.read_bytes()[:-1024])
    refused(copy, r"is \d+ bytes, manifest says \d+: truncated or replaced")


def test_replaced_shard_of_the_same_size(copy: Path) -> None:
    data = bytearray(tar_of(copy).read_bytes())
    data[600] ^= 1
    tar_of(copy).write_bytes(data)
    refused(copy, "has the right size but other content")


def test_manifest_that_does_not_match_its_index(copy: Path) -> None:
    shutil.copy(copy / "val.index", copy / "other")
    data = bytearray((copy / "train.index").read_bytes())
    data[-1] ^= 1
    (copy / "train.index").write_bytes(data)
    refused(copy, "is not the one of its manifest")
    (copy / "train.index").write_bytes(data[:-5])
    refused(copy, "damaged; index the shards again")
    (copy / "train.index").unlink()
    refused(copy, "the index .* is missing")


def edited(copy: Path, **fields: object) -> Path:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"] |= fields
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_zero_shards_and_empty_splits(copy: Path, tmp_path: Path) -> None:
    refused(edited(copy, shards=[]), "split train of .* has no shards")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no shards of split train in .*: there is neither a manifest.json nor a .tar")


def test_no_samples(copy: Path) -> None:
    refused(edited(copy, num_samples=0), "split train of .* has no samples")


def test_a_manifest_that_was_edited(copy: Path) -> None:
    refused(edited(copy, num_samples=3), f"manifest.json says 3 samples and the index train.index holds {IMAGES}: restore it")
    refused(
        edited(copy, num_samples="many"), "not a manifest of kdscale: splits.train.num_samples is 'many' .*index the shards"
    )
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["num_samples"] = IMAGES
    for number, words in (("x", "num_classes is 'x'"), (-4, "has num_classes -4"), (9, "num_classes 9 and names 3")):
        (copy / "manifest.json").write_text(json.dumps(manifest | {"num_classes": number}))
        refused(copy, words)


def test_a_manifest_that_is_none(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": "other/9"}')
    refused(copy, "is of format other/9")
    (copy / "manifest.json").write_text('{"for')
    refused(copy, "is not a manifest of kdscale")


def test_a_folder_of_pictures_in_the_place_of_shards(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 3)
    refused(root, f"is a folder of pictures, not of shards: run kdscale data pack {root} OUT --split train")


def test_a_split_that_is_not_there(packed: Path) -> None:
    refused(packed, "has no split test; it has train, val", which="eval", eval_split="test")


def test_tars_alone_are_indexed_on_the_fly(packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(tar_of(packed), tmp_path / "a-0.tar")
    with caplog.at_level(logging.WARNING):
        split = open_split(Data(str(tmp_path)), "train")
    assert len(split) == IMAGES
    assert len(caplog.records) == 1
    assert "has no manifest: reading the headers of 1 shards" in caplog.text
    refused(tmp_path, "one set of shards for both splits: to evaluate on it set eval_split=train", which="eval")
    with caplog.at_level(logging.WARNING):
        assert len(open_split(Data(str(tmp_path), eval_split="train"), "eval")) == IMAGES
    assert len(caplog.records) == 1, "it is said once a source"
    folder = split.root
    del split
    assert not folder.exists()


def test_lists_of_tars(packed: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 96, 96, 3), dtype=np.uint8)
    pack_arrays(images, np.arange(60) % 5, tmp_path / "d", split="train", name="x", shard_mb=1)
    listed = f"{tmp_path}/d/train/x-train-{{000000..000001}}.tar"
    assert len(open_split(Data(listed), "train")) == 60
    assert len(open_split(Data(f"{tmp_path}/d/train/*.tar"), "train")) == 60
    refused(f"{tmp_path}/d/train/x-train-{{000000..000004}}.tar", r"is missing \(3 of 5 missing\)")
    assert braces("a{8..10}-{x,y}") == ["a8-x", "a8-y", "a9-x", "a9-y", "a10-x", "a10-y"]


def test_compressed_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"")
    refused(tmp_path, "x.tar.gz is compressed, and samples are read by offset; decompress it")


def test_keys_that_occur_twice(packed: Path, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        shutil.copy(tar_of(packed), tmp_path / name)
    refused(tmp_path, "key .* occurs in .*a.tar and .*b.tar")


def test_real_shards(photos: Path) -> None:
    split = open_split(Data(str(photos)), "train")
    assert (len(split), split.info.classes, len(split.shards)) == (1000, 1000, 8)
    assert sorted(split.info.labels.tolist()) == list(range(1000))  # type: ignore[union-attr]
    assert split.info.names[0] == "tench"
