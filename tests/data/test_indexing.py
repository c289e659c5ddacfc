"""Anybody's tars: the same index however it is made, and what it says of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from webdataset import TarWriter

from kdscale.data import index, open_split
from kdscale.data.manifest import read_manifest
from kdscale.errors import DataError
from kdscale.recipe.data import Data

from .conftest import CLASSES, IMAGES, picture


def foreign(folder: Path, shards: int = 3, split: str = "train") -> Path:
    """Shards as others write them: labels in JSON, other members beside the images."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with TarWriter(str(folder / f"set-{split}-{shard:04d}.tar"), encoder=False) as tar:
            for number in range(4):
                data = io.BytesIO()
                picture(4 * shard + number).save(data, "PNG")
                label = json.dumps({"label": number, "caption": "a picture"}).encode()
                tar.write({"__key__": f"{shard}/{number}", "png": data.getvalue(), "json": label, "txt": b"words"})
    return folder


def test_index_of_foreign_tars(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = index(str(foreign(tmp_path)), split="train", on_progress=lambda done, total: told.append((done, total)))
    assert (report.samples, report.shards, report.classes, report.twins) == (12, 3, 4, 0)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert "train of 12 samples, 4 classes, 3 shards" in str(report)
    split = open_split(Data(str(tmp_path)), "train")
    assert split.describe(5).startswith("sample 1/1 in set-train-0001.tar at ")
    assert split.info.labels.tolist() == [0, 1, 2, 3] * 3  # type: ignore[union-attr]


@pytest.mark.slow
def test_jobs_do_not_change_the_index(tmp_path: Path) -> None:
    foreign(tmp_path / "tars")
    for name, jobs in (("one", 1), ("two", 2)):
        index(str(tmp_path / "tars"), split="train", jobs=jobs, out=str(tmp_path / name))
    assert (tmp_path / "one" / "train.index").read_bytes() == (tmp_path / "two" / "train.index").read_bytes()


def test_splits_share_a_manifest(tmp_path: Path) -> None:
    foreign(tmp_path)
    foreign(tmp_path, 1, "val")
    for split in ("train", "val"):
        index(str(tmp_path), split=split)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert {name: entry.num_samples for name, entry in manifest.splits.items()} == {"train": 12, "val": 4}


def test_what_packing_measured_stays(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    before = open_split(Data(str(copy)), "train").info
    report = index(str(copy), split="train")
    after = open_split(Data(str(copy)), "train").info
    assert (after.mean, after.std, after.names) == (before.mean, before.std, CLASSES)
    assert (report.samples, report.identity) == (IMAGES, before.identity)


def test_twins_are_counted(tmp_path: Path) -> None:
    foreign(tmp_path, 1)
    data = io.BytesIO()
    picture(0).save(data, "PNG")
    with TarWriter(str(tmp_path / "set-train-0009.tar"), encoder=False) as tar:
        tar.write({"__key__": "again", "png": data.getvalue(), "cls": b"0"})
    assert index(str(tmp_path), split="train").twins == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "ant\nbee\ncow\ndog\n"),
        ("names.json", '["ant", "bee", "cow", "dog"]'),
        (
            "rows.json",
            '[{"index": 1, "name": "bee"}, {"index": 0, "id": "ant"}, {"index": 2, "name": "cow"}, {"index": 3, "name": "dog"}]',
        ),
    ],
)
def test_files_of_classes(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    index(str(foreign(tmp_path / "tars")), split="train", classes_file=str(tmp_path / name))
    assert open_split(Data(str(tmp_path / "tars")), "train").info.names == ("ant", "bee", "cow", "dog")


def test_labels_that_only_some_samples_have(tmp_path: Path) -> None:
    data = io.BytesIO()
    picture(0).save(data, "PNG")
    for shard, keys in (("a", "pq"), ("b", "rst")):
        with TarWriter(str(tmp_path / f"x-train-{shard}.tar"), encoder=False) as tar:
            for key in keys:
                tar.write({"__key__": key, "png": data.getvalue()} | ({} if key in "rt" else {"cls": b"1"}))
    with pytest.raises(DataError, match=r"sample r in .*x-train-b.tar has no label \(2 of 5 have none\): give each"):
        index(str(tmp_path), split="train")
    (tmp_path / "x-train-a.tar").unlink()
    with TarWriter(str(tmp_path / "x-train-b.tar"), encoder=False) as tar:
        tar.write({"__key__": "alone", "png": data.getvalue()})
    assert index(str(tmp_path), split="train").classes == 0, "a set without any label stays one"


def test_metadata_without_a_label_is_a_set_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = io.BytesIO()
    picture(0).save(data, "PNG")
    with TarWriter(str(tmp_path / "x-train-a.tar"), encoder=False) as tar:
        for key, text in (("p", b'{"caption": "a bee", "n": 1}'), ("q", b'{"label": null, "n": 0}')):
            tar.write({"__key__": key, "png": data.getvalue(), "json": text})
    assert index(str(tmp_path), split="train").classes == 0
    assert "no sample of split train has a label: --label json:FIELD" in caplog.text
    assert index(str(tmp_path), split="train", label="json:n").classes == 2


def test_labels_beyond_the_classes(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"label 3 of split train is outside 0..1 \(2 classes\)"):
        index(str(foreign(tmp_path / "tars")), split="train", classes_file=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match="there is no file of classes"):
        index(str(tmp_path / "tars"), split="train", classes_file=str(tmp_path / "nothing"))
