"""What belongs to a folder of class folders, what is left out with a word, and which folders are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdscale.data import open_split, pack
from kdscale.data.folders import folder_source
from kdscale.errors import DataError
from kdscale.recipe.data import Data
from tests.cli import spoiling


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return spoiling.photos(tmp_path / "src", "abc", each=2)


def packed(source: Path, **settings: object) -> Path:
    out = source.parent / "out"
    pack(str(source), str(out), split="train", name="x", **settings)  # type: ignore[arg-type]
    return out


def test_links_are_followed_and_circles_end(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = spoiling.photos(tmp_path / "elsewhere", "d", each=3)
    (source / "d").symlink_to(elsewhere / "d")
    (source / "e").symlink_to(elsewhere / "d")
    (source / "a" / "up").symlink_to("..")
    (source / "b" / "deeper").symlink_to(elsewhere)
    (source / "b" / "one.jpg").symlink_to(elsewhere / "d" / "0.jpg")
    found = folder_source(source, ())
    assert found.names == ("a", "b", "c", "d", "e")
    assert np.bincount(found.labels).tolist() == [2, 6, 2, 3, 3]
    assert found.files[4] == "b/deeper/d/0.jpg"
    assert "1 links into a circle (first a/up)" in caplog.text


def test_what_is_hidden_is_left_out_in_one_line(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = (source / "a" / "0.jpg").read_bytes()
    for name in (".thumbs/x.jpg", "__MACOSX/a/x.jpg", ".ipynb_checkpoints/x.jpg", "a/.ipynb_checkpoints/x.jpg"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_bytes(picture)
    for name in ("a/._0.jpg", "a/.DS_Store", "b/Thumbs.db", "b/words.txt", "b/words"):
        (source / name).write_bytes(b"\0\5\26\7")
    (source / "c.jpg").mkdir()
    (source / "c.jpg" / "0.jpg").write_bytes(picture)
    found = folder_source(source, ())
    assert found.names == ("a", "b", "c", "c.jpg")
    assert len(found.files) == 7
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        f"left out of {source}: 6 hidden files and folders (first .ipynb_checkpoints), "
        "3 files that are no pictures (.db .txt words)"
    )


def test_a_class_without_pictures_is_refused_and_keeps_its_number_in_a_list(source: Path, tmp_path: Path) -> None:
    for picture in (source / "b").iterdir():
        picture.unlink()
    with pytest.raises(
        DataError, match=r"class folder .*/b holds no pictures: remove it, or keep its number by --classes FILE"
    ):
        packed(source)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    out = packed(source, classes_file=str(tmp_path / "classes.txt"))
    info = open_split(Data(str(out)), "train").info
    assert (info.names, sorted(info.labels.tolist())) == (("a", "b", "c"), [0, 0, 2, 2])  # type: ignore[union-attr]


def test_links_that_lead_nowhere(source: Path) -> None:
    (source / "a" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    with pytest.raises(
        DataError, match=r"gone.jpg is a link to /nowhere/x.jpg, which is not there: mend it, remove it, or pack"
    ):
        packed(source)
    out = packed(source, skip_bad=True)
    assert "gone.jpg" in (out / "rejected-train.txt").read_text()
    (source / "d").symlink_to("/nowhere")
    with pytest.raises(DataError, match="/d is a link to /nowhere, which is not there"):
        packed(source, skip_bad=True)


def test_a_picture_that_was_drawn_anew_in_as_many_bytes_is_another(source: Path) -> None:
    out = packed(source)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in out.rglob("*") if path.is_file()}
    packed(source)
    assert before == {path: hashlib.sha256(path.read_bytes()).digest() for path in out.rglob("*") if path.is_file()}
    picture = source / "a" / "0.jpg"
    old, content = picture.stat().st_mtime_ns, bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(old + 1, old + 1))
    with pytest.raises(DataError, match=r"already holds a split train of other data .*sizes, times or labels changed"):
        packed(source)
    assert len(open_split(Data(str(out)), "train")) == 6


def test_what_earlier_versions_packed_is_whole(tmp_path: Path) -> None:
    """Their fingerprint knew no times."""
    source, out = tmp_path / "src", tmp_path / "out"
    (source / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(source / "a" / "0.png")
    made = pack(str(source), str(out), split="train")
    manifest = json.loads((out / "manifest.json").read_text())
    size = (source / "a" / "0.png").stat().st_size
    former = hashlib.sha256(f"a/0.png\0{size}\x000\na".encode()).hexdigest()
    manifest["splits"]["train"]["packing"]["source"] = former
    (out / "manifest.json").write_text(json.dumps(manifest))
    again = pack(str(source), str(out), split="train")
    assert (again.kept, again.identity) == (1, made.identity)


def test_a_partly_packed_folder_takes_no_old_shard_of_a_changed_picture(tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "a").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(noise.integers(0, 256, (250, 250, 3), dtype=np.uint8)).save(source / "a" / f"{number}.png")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            packed(source, shard_mb=1, on_progress=interrupt)
    assert pack(str(source), str(tmp_path / "out"), split="train", name="x", shard_mb=1).kept > 0
    with pytest.raises(KeyboardInterrupt):
        pack(str(source), str(tmp_path / "out2"), split="train", name="x", shard_mb=1, on_progress=interrupt)
    os.utime(source / "a" / "0.png", ns=(1, 1))
    assert pack(str(source), str(tmp_path / "out2"), split="train", name="x", shard_mb=1).kept == 0


@pytest.mark.parametrize("name", ["a,b", "x.npy,y"])
def test_a_comma_in_a_name_is_no_comma_between_arrays(tmp_path: Path, name: str) -> None:
    source = spoiling.photos(tmp_path / name, "ab", each=1)
    assert pack(str(source), str(tmp_path / "out"), split="train").samples == 2
    images, labels = tmp_path / f"{name}-images.npy", tmp_path / "labels.npy"
    np.save(images, np.zeros((3, 4, 4, 3), np.uint8))
    np.save(labels, np.zeros(3, int))
    assert pack(f"{images},{labels}", str(tmp_path / "arrays"), split="train").samples == 3
    with pytest.raises(DataError, match=r"nothing to pack at .*none.npy$"):
        pack(f"{images},{tmp_path}/none.npy", str(tmp_path / "none"), split="train")


def test_names_of_other_alphabets_in_a_locale_without_them(tmp_path: Path) -> None:
    source = spoiling.photos(tmp_path / "bilder", "äねz", each=2)
    (source / "ä" / "0.jpg").rename(source / "ä" / "grün.jpg")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = (sys.executable, "-m", "kdscale", "data", "pack", str(source), str(tmp_path / "plain"), "-j", "1", "--name", "x")
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pack(str(source), str(tmp_path / "utf"), split="train", name="x")
    assert [entry["name"] for entry in json.loads((tmp_path / "plain" / "classes.json").read_text())] == ["z", "ä", "ね"]
    for path in (path for path in (tmp_path / "utf").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "plain" / path.relative_to(tmp_path / "utf")).read_bytes()
