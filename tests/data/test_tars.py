"""Members of tars of every common form, and tars that are damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from kdscale.data.scan import scan, split_name
from kdscale.data.tars import members
from kdscale.errors import DataError


def write(path: Path, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_places_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    long = "a/" * 30 + "b" * 90 + ".jpg"
    path = write(tmp_path / "x.tar", {"d/one.jpg": b"1" * 700, long: b"22", "empty.cls": b"", "é.txt": b"3"}, form)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [tuple(member) for member in members(path)] == expected


def test_directories_and_links_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/link.jpg", tarfile.SYMTYPE), ("d/file.jpg", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
    assert [member.name for member in members(path)] == ["d/file.jpg"]


@pytest.mark.parametrize(
    ("kept", "words"), [(2048, "without the end mark"), (1600, "its member at 1024 needs 1836"), (700, "it is truncated")]
)
def test_truncated_tars_are_noticed_also_between_members(tmp_path: Path, kept: int, words: str) -> None:
    path = write(tmp_path / "x.tar", {"a.jpg": b"1" * 300, "b.jpg": b"2" * 300})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=words):
        list(members(path))


def test_compressed_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", {"a.jpg": b"1"})
    path.write_bytes(gzip.compress(path.read_bytes()) + bytes(512))
    with pytest.raises(DataError, match="compressed with gzip"):
        list(members(path))
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="damaged or not a tar"):
        list(members(path))


def test_keys_are_cut_as_webdataset_cuts_them() -> None:
    assert split_name("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_name("c") == ("c", "")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.cls": b"1"}, "has no image"),
        ({"a.jpg": b"x", "a.png": b"x"}, "has 2 images"),
        ({"a.jpg": b"x", "a.cls": b"one"}, "not a whole number"),
        ({"a.jpg": b"x", "a.cls": b"1", "a.json": b'{"label": 2}'}, "has label 1 in cls and 2 in json"),
        ({"a.jpg": b"", "a.cls": b"1"}, r"image of sample a in .*x.tar, a.jpg, has 0 bytes"),
        ({"a.jpg": b"x", "a.cls": b"-5"}, r"label '-5' of sample a in .*x.tar is outside 0..2147483647: number the classes"),
        ({"a.jpg": b"x", "a.cls": b"99999999999"}, r"label '99999999999' of sample a in .*x.tar is outside"),
        ({"a.jpg": b"x", "a.json": b'{"label": 1.7}'}, r"label 1.7 of sample a in .*x.tar is not a whole number"),
        ({"a.jpg": b"x", "a.json": b'{"label": true}'}, "label True of sample a in .*x.tar is not a whole number"),
        ({"a.jpg": b"x", "a.json": b"{"}, "the json of sample a in .*x.tar cannot be read"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words):
        scan(write(tmp_path / "x.tar", files), "x.tar")


def test_a_key_twice_side_by_side(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.JPG", "a.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(DataError, match=r"two samples with the key a lie side by side in .*x.tar"):
        scan(tmp_path / "x.tar", "x.tar")


def test_labels_from_cls_json_or_nowhere(tmp_path: Path) -> None:
    files = {"a.jpg": b"x", "a.cls": b"3\n", "b.jpg": b"x", "b.json": b'{"label": 4, "deep": {"id": 5}}', "c.jpg": b"x"}
    path = write(tmp_path / "x.tar", files)
    assert scan(path, "x.tar").records["label"].tolist() == [3, 4, -1]
    path = write(tmp_path / "n.tar", {"a.jpg": b"x", "a.json": b'{"label": 2.0}', "b.jpg": b"x", "b.json": b'{"label": "3"}'})
    assert scan(path, "n.tar").records["label"].tolist() == [2, 3]
    path = write(tmp_path / "y.tar", {name: data for name, data in files.items() if name[0] == "b"})
    assert scan(path, "y.tar", "json:deep.id").records["label"].tolist() == [5]
    with pytest.raises(DataError, match="has no label json:nothing"):
        scan(path, "y.tar", "json:nothing")
