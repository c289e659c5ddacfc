from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdscale.errors import KdscaleError
from kdscale.recipe import resolve, to_plain
from kdscale.recipe.load import load
from kdscale.report import results


def row(name: str, seed: int, top1: float, **changes: Any) -> results.Row:
    return {
        "recipe": name, "seed": seed, "last": {"student": top1}, "best": {"student": top1 + 0.5}, "seconds": 60.0,
        "device": "a processor", "published": {"a paper, table 1": 70.0}, "resolved": {"seed": seed, "data": "x", **changes},
    }  # fmt: skip


def test_seeds_are_one_line_and_other_settings_another() -> None:
    lines = results.table([row("kd", 0, 71.0), row("kd", 1, 72.0), row("kd", 0, 60.0, data="y")])
    assert lines[2] == "| kd | 70.00 (a paper, table 1) | 71.50 ± 0.71 | 72.00 ± 0.71 | +1.50 | 2 | a processor, 60 |"
    assert lines[3].startswith("| kd (2) |")
    assert len(lines) == 4


def test_how_it_was_computed_and_fields_that_came_later_part_no_seeds() -> None:
    recipe = resolve(load("quickstart:recipe"))
    older, other = to_plain(recipe), to_plain(replace(recipe, seed=1))
    for phase in older["phases"]:
        del phase["data"]["train"]["cutout"]
        phase["data"]["workers"] = 3
    third = to_plain(recipe)
    for phase in third["phases"]:
        phase["data"]["train"]["cutout"] = 4
    rows = [{**row("kd", seed, 70.0), "resolved": plain} for seed, plain in enumerate((older, other, third))]
    assert {name: len(held) for name, held in results.grouped(rows).items()} == {"kd": 2, "kd (2)": 1}


def test_what_was_not_run_says_so() -> None:
    lines = results.table([row("kd", 0, 71.0)], [("kd", {}), ("shake", {"a paper": 77.0})])
    assert "| shake | 77.00 (a paper) | not run yet | not run yet | | 0 | |" in lines
    assert sum("| kd |" in line for line in lines) == 1


def test_a_run_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert results.record(path, row("kd", 0, 71.0))
    assert not results.record(path, row("kd", 0, 71.0))
    assert results.record(path, row("kd", 1, 71.0))
    assert [r["seed"] for r in results.read(path)] == [0, 1]


def test_a_finished_run_that_was_started_again_is_no_other_run(tmp_path: Path) -> None:
    path, first = tmp_path / "results.jsonl", row("kd", 0, 71.0)
    assert results.record(path, first | {"date": "2024-01-01", "commit": "a"})
    assert not results.record(path, first | {"date": "2024-01-02", "commit": "b"})


def test_a_last_line_without_its_end_stays_a_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(row("kd", 0, 71.0)))
    assert results.record(path, row("kd", 1, 71.0))
    assert [r["seed"] for r in results.read(path)] == [0, 1]


@pytest.mark.parametrize("line", [b"half", b"[1, 2]", b"3", b"null", b'{"recipe": "kd"}', b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps(row("kd", 0, 71.0)).encode() + b"\n" + line + b"\n")
    with pytest.raises(KdscaleError, match="line 2, is no row of results"):
        results.read(path)


def test_a_page_is_rewritten_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nafter\n")
    results.rewrite(page, ["new"])
    assert page.read_text() == f"before\n{results.MARKS[0]}\nnew\n{results.MARKS[1]}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(KdscaleError, match="no lines"):
        results.rewrite(page, ["new"])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("kdscale train r:kd data.source=/a/b seed=0 --out runs/x", "kdscale train r:kd data.source=DATA seed=0 --out OUT"),
        (
            "kdscale train 'my r.py:kd' 'data.source=/a b/c' '--out=runs/my run'",
            "kdscale train 'my r.py:kd' data.source=DATA --out=OUT",
        ),
        (
            "kdscale train r networks.teacher=/x/export -o y 'optimizer={kind: sgd}'",
            "kdscale train r networks.teacher=FOLDER -o OUT 'optimizer={kind: sgd}'",
        ),
        ("kdscale train it's --out x", shlex.join(["kdscale", "train", "it's", "--out", "OUT"])),
    ],
)
def test_a_command_is_told_without_its_places(command: str, said: str) -> None:
    assert results.placeless(command) == said
    assert results.placeless(said) == said
