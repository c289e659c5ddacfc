"""Sweeps of real runs: a missing teacher first, what is finished skipped, what was stopped continued, one table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from kdscale.engine import sweep
from tests import forks
from tests.engine import small

from .calling import done, kdscale

PAGE = '''
"""Two methods on one base, and the recipe of their teacher."""
from kdscale.methods import KD, Supervised
from kdscale.recipe import SGD, Augment, Data, Evaluation, Machine, Model, Phase, Recipe

data = Data({data!r}, batch=24, train=Augment.cifar(16, 2), eval_crop=1.0, workers=0)
phase = Phase(KD(), steps=8, optimizer=SGD(0.02))
taught = Recipe(
    networks={{"student": Model("resnet8"), "teacher": Model("nowhere/cnn6", made_by={page!r} + ":teacher", floor=0)}},
    data=data, phases=(phase,), machine=Machine(log_every=1, threads=1), published={{"a paper": 40.0}},
)
recipes = {{"kd": taught, "alone": taught.with_method(Supervised())}}
teacher = Recipe(networks={{"student": Model("cnn6")}}, data=data, phases=(Phase(Supervised(), steps=4),))
del taught, phase
'''


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "pair.py"
    path.write_text(PAGE.format(data=str(small.shards(tmp_path / "data")), page=str(path)))
    return path


class ForkedRuns:
    """``subprocess`` for a sweep whose runs begin at once; what they inherit from a sweep in a process of its own is not asked."""

    DEVNULL = subprocess.DEVNULL

    @staticmethod
    def Popen(words: list[str], *, stdout: BinaryIO, env: dict[str, str], **of_its_parent: Any) -> forks.Forked:
        assert words[:3] == [sys.executable, "-m", "kdscale"]
        return forks.Forked(*words[2:], environment=env, files=(Path(stdout.name),))


def test_a_missing_teacher_is_trained_first_and_nothing_twice(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "subprocess", ForkedRuns)
    out, record = tmp_path / "out", tmp_path / "results.jsonl"
    words = ("sweep", f"{page}:kd", "--grid", "seed=0,1", "--out", out, "-n", "2", "--record", record)
    said = kdscale(*words)
    assert said.code == 0, said
    assert said.out.index("teachers/cnn6: finished") < said.out.index("seed=0: started")
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["last"]["student"] == pytest.approx(100 * small.lines(folder(out, 0), "evaluation")[-1]["top1"])
    assert rows[0]["seconds"] > 0
    table = (out / "table.md").read_text()
    assert "40.00 (a paper)" in table
    assert "| 2 |" in table
    again = kdscale(*words)
    assert again.code == 0
    assert again.out.count("skipped") == 3
    assert len(record.read_text().splitlines()) == 2


def folder(out: Path, seed: int) -> Path:
    return next(path for path in out.iterdir() if path.is_dir() and path.name.endswith(f"seed={seed}"))


def test_a_stop_reaches_every_run_and_the_same_command_goes_on(page: Path, tmp_path: Path) -> None:
    words = ("sweep", f"{page}:alone", "steps=4000", "checkpointing.every_epochs=1", "--out", tmp_path / "out")
    process = small.start(*words)
    while not list(tmp_path.glob("out/*/checkpoints/step-*")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    run = next(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert json.loads((run / "verdict.json").read_text())["code"] == 75


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told of its parent's death")
def test_runs_of_a_sweep_that_is_killed_save_themselves(page: Path, tmp_path: Path) -> None:
    process = small.start("sweep", f"{page}:alone", "steps=40000", "checkpointing.every_epochs=1", "--out", tmp_path / "out")
    while not list(tmp_path.glob("out/*/checkpoints/step-*")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    verdict, end = next(tmp_path.glob("out/*/checkpoints")).with_name("verdict.json"), time.monotonic() + 60
    while not verdict.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert json.loads(verdict.read_text())["code"] == 75


def test_a_dry_run_lists_and_trains_nothing(page: Path, tmp_path: Path) -> None:
    listed = done("sweep", page, "--grid", "optimizer.lr=0.1,0.2", "--out", tmp_path / "out", "--dry-run")
    assert listed.count("to do") == 1 + 2 * 3  # the teacher; kd, alone and teacher at two rates each
    assert "networks.teacher=" in listed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("seed=1",), "name at least one recipe"),
        (("quickstart:recipe", "--grid", "seed"), "is no axis of a grid"),
        (("quickstart:recipe", "quickstart:recipe"), "have one folder"),
        (("quickstarted",), "there is no recipe 'quickstarted'"),
        (("quickstart:recipe", "--grid", "sed=1,2"), "sed"),
    ],
)
def test_what_cannot_be_swept_is_one_line(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    said = kdscale("sweep", *words, "--out", tmp_path / "out")
    assert said.code == 64
    assert told in said.err
    assert said.err.count("\n") == 1


def test_what_would_be_found_out_too_late_is_told_first(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, record = ("sweep", f"{page}:alone", "--out", tmp_path / "out"), tmp_path / "results.jsonl"
    record.write_text("[]\n")
    damaged = kdscale(*words, "--record", record)
    monkeypatch.setenv("WORLD_SIZE", "2")
    launched = kdscale(*words)
    for said, reason in ((damaged, "results.jsonl, line 1, is no row of results"), (launched, "start it without torchrun")):
        assert said.code == 64
        assert reason in said.err
        assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
