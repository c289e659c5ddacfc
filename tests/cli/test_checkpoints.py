"""``kdscale checkpoints``: what a run can go on from, said without touching it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdscale.engine.checkpoint import saving
from tests.cli.calling import done, kdscale, refused


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run: saves of steps 3 and 6, one a phase."""
    shutil.copytree(run, tmp_path / "out", symlinks=True)
    return tmp_path / "out"


def table(text: str) -> dict[str, dict[str, str]]:
    """Rows of both tables by their first column."""
    rows: dict[str, dict[str, str]] = {}
    for block in text.split("\n\n"):
        head, *lines = block.splitlines()
        places = [match.start() for match in re.finditer(r"(?<=  )\S|^\S", head)]
        names = [head[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)]
        for line in lines:
            cells = [line[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)]
            rows[cells[0]] = dict(zip(names, cells, strict=True))
    return rows


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def last(out: Path) -> Path:
    return saving.all_saves(out / "checkpoints")[-1]


def test_the_saves_of_a_finished_run(out: Path) -> None:
    before = everything(out)
    told = done("checkpoints", out)
    rows = table(told)
    first, second = rows["step-00000003"], rows["step-00000006"]
    assert (first["phase"], first["step"], first["state"]) == ("teacher", "3", "whole")
    assert (second["phase"], second["step"], second["epoch"], second["state"]) == ("student", "3", "0.60", "whole")
    assert "newest" in second["marks"]
    assert "best" in {word for row in (first, second) for word in row["marks"].split(", ")}
    assert second["written by"] == "ddp x 1"
    assert re.fullmatch(r"[\d.]+ kB", second["size"])
    assert rows["01-teacher/end"]["step"] == rows["02-student/end"]["step"] == "3"
    assert told.endswith("\nthe next start goes on from step-00000006\n")
    assert everything(out) == before, "listing touches nothing"


def short(save: Path) -> None:
    os.truncate(save / "trained.safetensors", 1000)


def flipped(save: Path) -> None:
    path = save / "trained.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(bytes(content))


def without(save: Path) -> None:
    (save / "save.json").unlink()


def changed(save: Path) -> None:
    path = save / "save.json"
    facts = json.loads(path.read_text())
    facts["memory"]["step"] += 1
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (short, "trained.safetensors is 1000 bytes and was saved with"),
        (flipped, "trained.safetensors does not hold what was saved (sha256 differs)"),
        (without, "has no save.json: it is not a complete save"),
        (changed, "save.json does not hold what was saved (sha256 differs)"),
    ],
)
def test_what_is_wrong_with_a_save_is_said_and_it_is_left_where_it_is(
    damage: Callable[[Path], None], said: str, out: Path
) -> None:
    damage(last(out))
    before = everything(out)
    told = kdscale("checkpoints", out)
    assert told.code == 70
    row = table(told.out)["step-00000006"]
    assert row["state"].startswith(said)
    assert "newest" in row["marks"]
    assert told.out.endswith("the next start goes on from step-00000003\n")
    assert everything(out) == before


def test_without_reading_the_files_sizes_alone_are_compared(out: Path) -> None:
    flipped(last(out))
    assert table(done("checkpoints", out, "--no-verify"))["step-00000006"]["state"] == "whole"
    short(last(out))
    assert kdscale("checkpoints", out, "--no-verify").code == 70


def test_what_is_half_written_is_named_and_stays(out: Path) -> None:
    save = last(out)
    shutil.copytree(save, save.with_name(".tmp-step-00000009-0123abcd"))
    save.with_name(".del-step-00000003-0123abcd").mkdir()
    rows = table(done("checkpoints", out))
    assert rows[".tmp-step-00000009-0123abcd"]["state"] == "unfinished: being written, or cut off; the next start removes it"
    assert rows[".del-step-00000003-0123abcd"]["state"] == "being removed"
    assert len(saving.unfinished(out / "checkpoints")) == 2


def test_a_save_of_another_recipe_is_not_the_newest(out: Path) -> None:
    path = last(out) / "save.json"
    facts = json.loads(path.read_text()) | {"family": "another"}
    path.write_text(json.dumps(facts | {"sha256": saving.seal(facts)}))
    rows = table(done("checkpoints", out))
    assert rows["step-00000006"]["state"] == "of another recipe, left alone"
    assert rows["step-00000003"]["marks"] == "newest"


def test_a_phase_file_that_is_cut_short_is_said(out: Path) -> None:
    os.truncate(out / "phases" / "01-teacher" / "end.safetensors", 500)
    assert "cannot be read" in table(kdscale("checkpoints", out).out)["01-teacher/end"]["state"]


def test_no_save_and_no_run(out: Path, tmp_path: Path) -> None:
    shutil.rmtree(out / "checkpoints")
    told = kdscale("checkpoints", out)
    assert told.code == 70
    assert told.out.endswith("no save is whole: the next start begins anew\n")
    (tmp_path / "empty").mkdir()
    assert "holds no run: give the folder that was --out" in refused("checkpoints", tmp_path / "empty")
