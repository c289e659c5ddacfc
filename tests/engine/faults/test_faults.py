"""Faults of one rank, in real processes: how the others end, what they say of it, and that the run continues to the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine import small
from tests.engine.mishaps import short
from tests.engine.stable import Stable, children, command, descendants
from tests.engine.test_run import same

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

INJURIES = "tests.engine.injuries"


def continued(recipe: Path, out: Path, whole: Path, forks: Stable) -> None:
    """The same command again, and then nothing shows what had happened."""
    forks.train(recipe, out=out, ranks=2)
    same(out, whole)
    assert small.verdict(out)["code"] == 0
    assert not list(out.glob("fault-*.json"))


def fault(out: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((out / f"fault-{rank}.json").read_text()))


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", [" step 8/", "a batch of an evaluation"])
def test_a_rank_that_is_killed(victim: int, moment: str, recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:slow_evaluation")
    run.until_said(moment)
    run.send(signal.SIGKILL, victim)
    codes = run.wait()
    assert codes[victim] == -9
    assert codes[1 - victim] == 70
    verdict = small.verdict(out)
    assert verdict["code"] == 70
    assert re.match(rf"rank {victim} on .* \(process {run.pids[victim]}\) died without a word: killed", verdict["reason"])
    assert verdict["reason"] in (out / "log.txt").read_text()
    assert run.said.count(f"kdscale: rank {victim} on") == 1
    assert fault(out, 1 - victim)["lost_contact"]
    continued(recipe, out, whole, forks)


def test_a_rank_that_is_killed_in_a_save(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    """The save is not there, and the one before it is."""
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:killed_in_save", INJURED="0", AT="9")
    assert run.wait() == [-9, 70]
    assert small.verdict(out).items() >= {"code": 70, "last_save": "step-00000006"}.items()
    continued(recipe, out, whole, forks)


def test_a_mistake_of_one_rank_is_told_in_its_own_words(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:mistake", INJURED="1", AT="7")
    assert run.wait() == [70, 70]
    assert re.match(
        r"rank 1 on .*: ValueError: a mistake that one rank alone makes; the last save", small.verdict(out)["reason"]
    )
    assert "in raises" in fault(out, 1)["traceback"]
    assert fault(out, 1).items() >= {"step": 7, "doing": "computing", "lost_contact": False}.items()
    continued(recipe, out, whole, forks)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_without_memory(victim: int, recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:memory", INJURED=str(victim), AT="7")
    assert run.wait() == [71, 71], run.said
    verdict = small.verdict(out)
    assert verdict["code"] == 71
    assert "is out of memory: double machine.accumulate (1) or use a smaller batch" in verdict["reason"]
    assert victim == 0 or verdict["reason"].startswith("rank 1 on ")
    continued(recipe, out, whole, forks)


def test_a_loss_of_one_rank_names_it_and_its_samples(data: Path, forks: Stable, tmp_path: Path) -> None:
    path, out = small.write(tmp_path / "r.json", small.recipe(data)), tmp_path / "out"
    run = forks.start(path, out=out, ranks=2, injury=f"{INJURIES}:not_a_number", INJURED="1", AT="7")
    assert run.wait() == [70, 70]
    found = re.match(
        r"the loss of rank 1 is not finite at step 7 of phase 'student' \(samples ([\d, ]+)\); the last save is kept",
        small.verdict(out)["reason"],
    )
    assert found
    assert len(found[1].split(",")) == 12  # of a batch of 24
    assert small.verdict(out)["last_save"] == "step-00000006"


def test_a_rank_that_hangs(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (recipe, "machine.stall=4")
    run = forks.start(*words, out=out, ranks=2, injury=f"{INJURIES}:hang", INJURED="1", AT="7")
    assert run.wait() == [72, 72], run.said
    verdict = small.verdict(out)
    assert verdict["code"] == 72
    assert re.match(r"rank 1 on .* hung while computing \(step 7, .*injuries.py:\d+ <lambda>\) for 4 s", verdict["reason"])
    for rank in (0, 1):
        assert "most recent call first" in (out / f"stacks-{rank}.txt").read_text()
    assert "injuries.py" in (out / "stacks-1.txt").read_text()
    assert "injuries.py" not in (out / "stacks-0.txt").read_text()
    assert verdict["reason"] in (out / "log.txt").read_text()
    continued(recipe, out, whole, forks)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_whose_process_is_stopped(victim: int, recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    """As on a machine that is gone but whose connections stand: the others end, and name it."""
    out = tmp_path / "out"
    run = forks.start(recipe, "machine.stall=4", out=out, ranks=2)
    run.until_said(" step 8/")
    run.send(signal.SIGSTOP, victim)
    other = 1 - victim
    run.until(lambda: run.codes()[other] is not None)
    assert run.codes()[other] == 72
    assert re.match(rf"rank {victim} on .* \(process {run.pids[victim]}\) does not answer", small.verdict(out)["reason"])
    run.send(signal.SIGKILL, victim)
    run.wait()
    continued(recipe, out, whole, forks)


def test_a_rank_of_which_nothing_is_heard_is_not_waited_for_as_long_as_a_step(
    recipe: Path, forks: Stable, tmp_path: Path
) -> None:
    """A machine may be lost without a word, and ``machine.stall`` be long: silence is found, told and ended by itself."""
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:impatient", INJURED="0")
    run.until_said(" step 8/")
    run.send(signal.SIGSTOP, 1)
    run.until(lambda: run.codes()[0] is not None)
    assert run.codes()[0] == 72
    named = rf"rank 1 on .* \(process {run.pids[1]}\)"
    assert re.search(rf"nothing was heard of {named} for 2 s: is the machine down\?", (out / "log.txt").read_text())
    assert re.match(rf"{named} does not answer, .* for 2 s, stacks are in", small.verdict(out)["reason"])
    run.send(signal.SIGKILL, 1)
    run.wait()


def test_a_worker_that_is_stuck(data: Path, forks: Stable, tmp_path: Path) -> None:
    """One process waits for data that never comes: it says so, and leaves no worker behind."""
    recipe = small.write(tmp_path / "r.json", short(data, steps=3000, every=5))
    out = tmp_path / "out"
    run = forks.start(recipe, "machine.stall=20", "data.workers=1", "data.read=stream", out=out)
    run.until_said(" step 8/")
    worker = next(pid for pid in descendants(run.pids[0]) if "multiprocessing.forkserver" in command(pid) and not children(pid))
    os.kill(worker, signal.SIGSTOP)
    assert run.wait() == [72]
    verdict = small.verdict(out)
    assert re.match(r"the run on .* hung while reading \(step \d+", verdict["reason"])
    assert f"worker processes: {worker} T" in (out / "stacks-0.txt").read_text()
    run.until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in (Path(f"/proc/{worker}/stat")).read_text())
    assert int(verdict["last_save"].removeprefix("step-")) >= 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["a batch of an evaluation", "writing trained.safetensors", " step 8/"])
def test_a_signal_to_all_ranks(
    number: signal.Signals, moment: str, recipe: Path, whole: Path, forks: Stable, tmp_path: Path
) -> None:
    """At any moment; one that comes before the first step finds nothing to save."""
    out, injury = tmp_path / "out", "slow_save" if "writing" in moment else "slow_evaluation"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:{injury}")
    run.until_said(moment)
    run.send(number)
    assert run.wait() == [75, 75], run.said
    verdict = small.verdict(out)
    assert verdict["code"] == 75
    assert number.name in verdict["reason"]
    if verdict.get("step"):
        assert verdict["last_save"] == f"step-{verdict['global_step']:08d}"  # nothing is lost
    continued(recipe, out, whole, forks)


def test_a_signal_to_one_rank_stops_all(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2)
    run.until_said(" step 8/")
    run.send(signal.SIGUSR1, 1)
    assert run.wait() == [75, 75]
    continued(recipe, out, whole, forks)


def test_a_signal_to_a_whole_group_leaves_the_workers_to_the_run(data: Path, forks: Stable, tmp_path: Path) -> None:
    """A scheduler may signal every process of a job: the workers must outlive the step that is finished."""
    recipe = small.write(tmp_path / "r.json", small.recipe(data))
    words = (recipe, "data.workers=1", "data.read=stream")
    forks.train(*words, out=tmp_path / "whole")
    out = tmp_path / "out"
    for number, step in ((signal.SIGUSR1, 8), (signal.SIGTERM, 14)):
        run = forks.start(*words, out=out)
        run.until_said(f" step {step}/")
        os.killpg(run.pids[0], number)
        assert run.wait() == [75], run.said
        assert "died" not in run.said
    forks.train(*words, out=out)
    same(out, tmp_path / "whole")


def test_a_second_signal_ends_at_once(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = forks.start(recipe, out=out, ranks=2, injury=f"{INJURIES}:slow_save")
    run.until_said("writing trained.safetensors")
    run.send(signal.SIGTERM)
    time.sleep(0.7)
    if None in run.codes():
        run.send(signal.SIGTERM)
    codes = run.wait()
    if codes == [76, 76]:
        assert small.verdict(out)["code"] == 76
        assert "a second signal (SIGTERM) ended the run at once" in small.verdict(out)["reason"]
    continued(recipe, out, whole, forks)


def test_signals_while_a_run_starts(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    """Before a run has its folder a signal ends the process as any; afterwards it ends with 75. Either way it can go on."""
    for number, pause in enumerate((0.0, 0.1, 0.3, 0.6, 1.0)):
        out = tmp_path / str(number)
        run = forks.start(recipe, out=out, ranks=2)
        time.sleep(pause)
        run.send(signal.SIGTERM)
        assert set(run.wait()) <= {-15, 70, 75}, run.said
        continued(recipe, out, whole, forks)


def test_two_runs_in_one_folder_after_a_crash(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = forks.start(recipe, out=out, ranks=2, SLURM_JOB_ID="17")
    first.until_said(" step 3/")
    second = forks.start(recipe, out=out, ranks=2)
    assert second.wait() == [64, 64]
    assert f"in use by process {first.pids[0]} on" in second.said
    assert "(Slurm job 17): stop it, or choose another --out" in second.said
    first.send(signal.SIGKILL)
    first.wait()
    assert (out / "lock").exists()
    continued(recipe, out, whole, forks)


def test_what_a_start_and_an_end_say_of_their_job(data: Path, forks: Stable, tmp_path: Path) -> None:
    path, out = small.write(tmp_path / "r.json", short(data, steps=2)), tmp_path / "out"
    job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", "SLURM_JOB_NODELIST": "n[0-1]"}
    assert forks.start(path, out=out, **job).wait() == [0]
    told = {"job": "17", "restarts": 2, "nodes": "n[0-1]"}
    assert json.loads((out / "starts.jsonl").read_text()).items() >= told.items()
    ended = {"code": 0, "phase": "student", "step": 2, "global_step": 2, "last_save": "step-00000002"}
    assert small.verdict(out).items() >= (told | ended).items()


@pytest.mark.parametrize(("split", "said"), [("val", "cannot be opened"), ("train", "truncated; restore it")])
def test_a_shard_that_is_spoilt_while_two_ranks_run(
    split: str, said: str, data: Path, recipe: Path, whole: Path, forks: Stable, tmp_path: Path
) -> None:
    """One of the evaluation vanishes before the next one, one of training is cut: one line, a save, and no step is lost."""
    source, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, source)
    words = (small.write(tmp_path / "r.json", small.recipe(source)), "data.read=stream")
    run = forks.start(*words, out=out, ranks=2, injury=f"{INJURIES}:slow_evaluation")
    run.until_said(" step 12/")
    shard = next((source / split).glob("*.tar"))
    shutil.copyfile(shard, tmp_path / "kept")
    if split == "val":
        shard.unlink()
    else:
        os.truncate(shard, 2000)
    assert run.wait() == [64, 64], run.said
    told = [line for line in run.said.splitlines() if line.startswith("kdscale:")]
    assert len(told) == 1
    assert shard.name in told[0]
    assert said in told[0]
    verdict = small.verdict(out)
    assert verdict.items() >= {"code": 64, "last_save": f"step-{verdict['global_step']:08d}"}.items()
    assert verdict["global_step"] >= 12
    shutil.copyfile(tmp_path / "kept", shard)
    forks.train(*words, out=out, ranks=2)
    same(out, whole)
