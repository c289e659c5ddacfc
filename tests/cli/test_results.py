"""``kdscale results``: which folders it takes, and what it says of the others before it writes anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.calling import done, refused


@pytest.fixture
def sweep(run: Path, tmp_path: Path) -> Path:
    """A sweep's folder with a finished run, a failed one, and their logs."""
    for name in ("a-seed=0", "a-seed=1"):
        place = tmp_path / "sweep" / name
        place.mkdir(parents=True)
        for file in run.glob("*.json*"):
            shutil.copy(file, place)
        Path(f"{place}.log").write_text("step 1\n")
    (place / "verdict.json").write_text(json.dumps({"code": 70, "reason": "RuntimeError: it\nbroke", "time": 1}))
    return tmp_path / "sweep"


def test_a_folder_of_runs_and_a_run_that_failed_are_told_and_nothing_is_appended(sweep: Path) -> None:
    table = sweep / "rows.jsonl"
    first, second = sweep / "a-seed=0", sweep / "a-seed=1"
    assert f"it is the folder of several runs, give them: {first}, {second}" in refused("results", sweep, "--file", table)
    line = refused("results", first, second, "--file", table)
    assert line == f"{second} is not finished (RuntimeError: it broke): run its train command again"
    assert not table.exists()


def test_a_pattern_may_find_the_logs_beside_the_runs(sweep: Path) -> None:
    told = done("results", *sorted(sweep.glob("*seed=0*")), "--file", sweep / "rows.jsonl")
    assert told.startswith(f"{sweep / 'a-seed=0'}: appended to")
    assert len((sweep / "rows.jsonl").read_text().splitlines()) == 1
    assert "is no run" in refused("results", sweep / "rows.jsonl", "--file", sweep / "rows.jsonl")
