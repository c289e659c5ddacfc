"""What a run has to give, read by name: also from a folder that a kill or a bad disk has marked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdscale.engine.parallel import Session
from kdscale.engine.run import train
from kdscale.engine.trained import open_run, trained
from kdscale.errors import RunError
from kdscale.export.from_run import facts
from kdscale.recipe import override
from tests.engine import small


@pytest.fixture
def out(data: Path, session: Session, tmp_path: Path) -> Path:
    train(override(small.recipe(data), ["steps=4"]), tmp_path / "out", session, lambda recipe, path: [])
    return tmp_path / "out"


def test_a_name_that_a_phase_has_not_is_one_line(out: Path) -> None:
    with pytest.raises(RunError, match=r"phase 'student' has trained no 'peer1'; .*student"):
        trained(open_run(out), "student.peer1")
    assert trained(open_run(out), "student.ema").what == "ema"


def test_a_half_written_line_and_a_damaged_save_cost_no_export(out: Path) -> None:
    before = facts(trained(open_run(out)))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"event": "trai')
    saves = sorted((out / "checkpoints").glob("step-*"))
    os.truncate(saves[-1] / "save.json", 20)
    after = facts(trained(open_run(out)))
    assert after.evaluations == before.evaluations
    assert 0 < after.seconds <= before.seconds
    assert saves[-1].exists(), "reading a run changes nothing in it"
