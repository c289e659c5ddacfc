"""The very scripts of slurm/ on a real Slurm of two nodes: what starts together, what stops a job, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from kdscale.data.manifest import read_manifest
from tests.engine import small
from tests.engine.test_run import same

from .cluster import wait_until
from .jobs import SCRIPTS, Place, process_of_rank

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.ranks]

FORMS = ("torchrun", "srun")


@pytest.fixture(scope="module")
def whole(place: Place) -> Path:
    """The run that nothing interrupts, on two nodes."""
    out = place.folder / "whole"
    place.wait_for_end(place.train(out), out)
    return out


def test_two_nodes_train_the_run_of_one(place: Place, whole: Path) -> None:
    one = place.folder / "one"
    place.wait_for_end(place.train(one, "--nodes=1"), one)
    assert small.lines(whole)[0]["step"] == 1
    for mine, theirs in list(zip(small.losses(whole), small.losses(one), strict=True))[:40]:
        assert mine[1] == theirs[1]
        assert mine[3] == pytest.approx(theirs[3], abs=1e-5)
    logs = sorted(path.name for path in Path(f"{whole}.slurm").glob("job-*/rank-*.log"))
    assert logs == ["rank-0.log", "rank-1.log"]


def test_one_task_a_rank_needs_no_launcher(place: Place, whole: Path) -> None:
    out = place.folder / "srun"
    place.wait_for_end(place.train(out, launch="srun"), out)
    same(out, whole)


def continued(place: Place, job: str, out: Path, whole: Path, code: int, starts: int = 2) -> None:
    """The job ends well after ``starts`` starts, the first of which ended with ``code``, with the bits of the whole run."""
    place.wait_for_end(job, out)
    said = place.said(job)
    assert f"ended with {code} at step" in said, place.told(job, out)
    assert f"start {starts} on" in said
    assert f"start {starts + 1} on" not in said
    same(out, whole)


@pytest.mark.parametrize("launch", FORMS)
def test_a_warning_is_a_save_and_another_start(place: Place, whole: Path, launch: str) -> None:
    out = place.folder / f"warned-{launch}"
    job = place.train(out, launch=launch)
    place.wait_for_step(job, out, 50)
    place.cluster("scancel", "--signal=USR1", "--batch", job)
    continued(place, job, out, whole, 75)


@pytest.mark.parametrize("launch", FORMS)
def test_a_requeue_is_a_save_and_another_start(place: Place, whole: Path, launch: str) -> None:
    out = place.folder / f"requeued-{launch}"
    job = place.train(out, launch=launch)
    place.wait_for_step(job, out, 50)
    place.cluster("scontrol", "requeue", job)
    continued(place, job, out, whole, 75)


def test_a_job_that_goes_before_is_a_save_and_another_start(place: Place, whole: Path) -> None:
    out = place.folder / "preempted"
    job = place.train(out, "--partition=low", "--exclusive")
    place.wait_for_step(job, out, 50)
    first = place.cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=srun true")
    wait_until(lambda: place.cluster.state(first) == "COMPLETED", 60, "the other job did not go before")
    continued(place, job, out, whole, 75)


@pytest.mark.parametrize("launch", FORMS)
def test_a_killed_rank_is_another_start_at_the_last_save(place: Place, whole: Path, launch: str) -> None:
    out = place.folder / f"killed-{launch}"
    job = place.train(out, launch=launch)
    place.wait_for_step(job, out, 50)
    os.kill(process_of_rank(out, 1), signal.SIGKILL)
    continued(place, job, out, whole, 70)


def test_a_crashed_node_is_another_start_when_it_is_back(place: Place, whole: Path) -> None:
    out = place.folder / "crashed"
    job = place.train(out)
    place.wait_for_step(job, out, 50)
    place.cluster.crash("n1")
    try:
        wait_until(lambda: place.cluster.state(job) != "RUNNING", 90, "the job goes on without its node")
    finally:
        place.cluster.start_node("n1")
    place.wait_for_end(job, out)
    same(out, whole)


def test_a_cancelled_job_is_saved_and_does_not_come_back(place: Place) -> None:
    out = place.folder / "cancelled"
    job = place.train(out)
    place.wait_for_step(job, out, 30)
    place.cluster("scancel", job)
    place.wait_for_end(job, out, "CANCELLED")
    wait_until(lambda: "ended with 75" in place.said(job), 30, place.told(job, out))
    assert small.verdict(out)["code"] == 75
    assert "Slurm is ending this job itself" in place.said(job)


def test_a_job_that_fails_at_once_is_not_started_for_ever(place: Place) -> None:
    """What no retry cures ends the job; a fault without a save between is retried as often as site.env says."""
    unknown, out = place.folder / "unknown.json", place.folder / "hopeless"
    unknown.write_text(place.recipe.read_text().replace(str(place.data), "/nowhere"))
    job = place.train(out, recipe=unknown)
    place.wait_for_end(job, out, "FAILED")
    assert "ended with 64" in place.said(job)
    assert place.cluster.facts(job)["ExitCode"] == "64:0"


def test_an_array_runs_every_element_and_retries_the_failing_one(place: Place) -> None:
    out, cluster = place.folder / "sweep", place.cluster
    axis = "optimizer={kind: adamw, lr: 0.001},{kind: sgd, lr: 1e20},{kind: adamw, lr: 0.002}"
    words: list[str | Path] = ["steps=8", "checkpointing.every_steps=4", "--grid", axis, "--out", out]
    listed = cluster(sys.executable, SCRIPTS / "sweep.py", place.recipe, *words)
    assert listed == f"sbatch --array=0-2%8 {SCRIPTS}/sweep.sbatch {out}\n"
    runs = [Path(run["out"]) for run in json.loads((out / "sweep.json").read_text())["runs"]]
    array = cluster.submit(
        "--array=0-2", "--output", place.folder / "job-%A_%a.txt", SCRIPTS / "sweep.sbatch", out, KDSCALE_RETRIES="1"
    )
    for number, state in enumerate(("COMPLETED", "FAILED", "COMPLETED")):
        place.wait_for_end(f"{array}_{number}", runs[number], state)
    assert [small.verdict(run)["code"] for run in runs] == [0, 70, 0]
    said = place.said(f"{array}_1")
    assert said.count("ended with 70") == 2
    assert "2 faults without a newer save between them are more than KDSCALE_RETRIES=1 allows" in said
    assert cluster.facts(f"{array}_1")["ExitCode"] == "70:0"


def test_a_pack_that_is_warned_continues(place: Place, tmp_path: Path) -> None:
    source, packed = tmp_path / "images.npz", place.folder / "packed"
    rng = np.random.default_rng(1)
    np.savez(source, images=rng.integers(0, 255, (4000, 32, 32, 3), dtype=np.uint8), labels=np.arange(4000) % 4)
    script = place.cluster.submit(
        "--output", place.folder / "job-%j.txt", SCRIPTS / "pack.sbatch", source, packed, "--shard-mb", "1"
    )
    wait_until(lambda: any(packed.rglob("*.tar*")), 60, "nothing was packed")
    place.cluster("scancel", "--signal=USR1", "--batch", script)
    place.wait_for_end(script, packed)
    assert "ended with 75" in place.said(script)
    manifest = read_manifest(packed)
    assert manifest is not None
    assert manifest.splits["train"].num_samples == 4000
