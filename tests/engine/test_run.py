"""Whole runs as a user starts them: killed, stopped, extended, changed, damaged; what they leave must be as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdscale.recipe import override
from tests import forks
from tests.engine import full_disk, small


@pytest.fixture(scope="module")
def never_stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe file, output) of a run that nothing happened to, in an interpreter of its own; all others here are forks."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = small.write(folder / "r.json", small.recipe(data))
    small.kdscale("train", recipe, "--out", folder / "out", launched=True)
    return recipe, folder / "out"


def same(a: Path, b: Path, phase: str = "01-student") -> None:
    assert small.losses(a) == small.losses(b)
    mine, theirs = small.weights(a, phase), small.weights(b, phase)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_what_a_run_leaves(never_stopped: tuple[Path, Path]) -> None:
    _, out = never_stopped
    present = {p.name for p in out.iterdir()}
    assert {
        "recipe.json",
        "environment.json",
        "starts.jsonl",
        "metrics.jsonl",
        "log.txt",
        "verdict.json",
        "checkpoints",
        "phases",
        "best",
    } <= present
    assert "lock" not in present
    assert small.verdict(out)["code"] == 0
    train = small.lines(out)
    assert [line["step"] for line in train] == list(range(1, 23))
    assert {"phase", "step", "epoch", "losses", "lr", "images_per_second", "data_wait"} <= train[0].keys()
    evaluated = small.lines(out, "evaluation")
    assert {line["name"] for line in evaluated} == {"student", "class", "shadow", "ema", "teacher"}
    assert all(line["count"] == small.VAL for line in evaluated)
    assert len(list((out / "checkpoints").glob("step-*"))) <= 4  # the last three, and the best
    assert (out / "best").resolve().parent == (out / "checkpoints").resolve()
    for file in (p for p in out.rglob("*") if p.is_file() and p.suffix not in (".txt",)):
        assert file.suffix in (".json", ".jsonl", ".safetensors"), file


def test_repeated_it_is_done(never_stopped: tuple[Path, Path]) -> None:
    recipe, out = never_stopped
    before = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    small.kdscale("train", recipe, "--out", out)
    assert {p: p.read_bytes() for p in out.rglob("*.safetensors")} == before
    assert [line["step"] for line in small.lines(out)] == list(range(1, 23))


@pytest.mark.parametrize("step", [5, 13])
def test_killed_it_continues_to_the_same_bits(never_stopped: tuple[Path, Path], tmp_path: Path, step: int) -> None:
    """In mid-epoch, between saves, with mixup, EMA and drop-path on."""
    recipe, whole = never_stopped
    process = small.start("train", recipe, "--out", tmp_path / "out")
    small.wait_for_step(process, step)
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "verdict.json").exists()
    done = small.kdscale("train", recipe, "--out", tmp_path / "out")
    assert "from step" in done.stdout
    same(tmp_path / "out", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_75(never_stopped: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    recipe, whole = never_stopped
    process = small.start("train", recipe, "--out", tmp_path / "out")
    small.wait_for_step(process, 4)
    process.send_signal(number)
    rest = process.communicate()[0]
    assert process.returncode == 75, rest
    verdict = small.verdict(tmp_path / "out")
    assert verdict["code"] == 75
    assert number.name in verdict["reason"]
    small.kdscale("train", recipe, "--out", tmp_path / "out")
    same(tmp_path / "out", whole)


@pytest.mark.slow
def test_a_job_that_nears_its_time_limit_saves_and_says_75(
    never_stopped: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under plain ``srun``, which sends no signal before it kills."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 20))
    process = small.start("train", never_stopped[0], "steps=4000", "--out", tmp_path / "out")
    rest = process.communicate()[0]
    assert process.returncode == 75, rest
    assert small.verdict(tmp_path / "out")["reason"].startswith("the job's time limit asked for a stop; saved")


def test_a_second_start_in_the_same_folder_is_refused(never_stopped: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, _ = never_stopped
    process = small.start("train", recipe, "steps=4000", "--out", tmp_path / "out")
    small.wait_for_step(process, 2)
    refused = small.kdscale("train", recipe, "steps=4000", "--out", tmp_path / "out", expect=64)
    process.kill()
    process.wait()
    assert f"in use by process {process.pid}" in refused.stderr


def test_two_phases_killed_in_the_second(data: Path, tmp_path: Path) -> None:
    recipe = small.write(tmp_path / "r.json", small.two_phases(data))
    small.kdscale("train", recipe, "--out", tmp_path / "whole")
    process = small.start("train", recipe, "--out", tmp_path / "out")
    small.wait_for_step(process, 7)  # the end of the teacher's phase
    small.wait_for_step(process, 4)
    process.kill()
    process.wait()
    small.kdscale("train", recipe, "--out", tmp_path / "out")
    same(tmp_path / "out", tmp_path / "whole", "02-student")
    assert (tmp_path / "out" / "phases" / "01-teacher" / "end.safetensors").exists()


def test_a_finished_run_is_extended(data: Path, tmp_path: Path) -> None:
    """With a constant rate the longer run goes on where the shorter one ended, as if it had been asked for at once."""
    base = override(small.recipe(data), ["schedule={kind: constant}"])
    recipe = small.write(tmp_path / "r.json", base)
    small.kdscale("train", recipe, "--out", tmp_path / "out")
    done = small.kdscale("train", recipe, "steps=+5", "--out", tmp_path / "out")
    assert "extended: phases.0.steps was 22, is 27" in done.stdout
    small.kdscale("train", recipe, "steps=27", "--out", tmp_path / "whole")
    same(tmp_path / "out", tmp_path / "whole")


def test_another_recipe_is_refused_by_field_unless_told(never_stopped: tuple[Path, Path], tmp_path: Path, data: Path) -> None:
    recipe = small.write(tmp_path / "r.json", small.recipe(data))
    small.kdscale("train", recipe, "steps=3", "--out", tmp_path / "out")
    refused = small.kdscale("train", recipe, "steps=3", "optimizer.lr=0.5", "seed=3", "--out", tmp_path / "out", expect=64)
    assert "phases.0.optimizer.lr was 0.001, is 0.5" in refused.stderr
    assert "seed was 0, is 3" in refused.stderr
    assert refused.stderr.count("\n") == 1
    # How it is computed is not what is computed.
    small.kdscale("train", recipe, "steps=3", "machine.log_every=2", "data.workers=1", "--out", tmp_path / "out")
    small.kdscale("train", recipe, "steps=3", "optimizer.lr=0.5", "--out", tmp_path / "out", "--overwrite")
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["phases"][0]["optimizer"]["lr"] == 0.5
    assert [line["step"] for line in small.lines(tmp_path / "out")] == [1, 2, 3]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(never_stopped: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, whole = never_stopped
    process = small.start("train", recipe, "--out", tmp_path / "out")
    small.wait_for_step(process, 10)
    process.kill()
    process.wait()
    saves = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))
    os.truncate(saves[-1] / "trained.safetensors", 1000)
    done = small.kdscale("train", recipe, "--out", tmp_path / "out")
    assert f"{saves[-1].name}/trained.safetensors is 1000 bytes" in done.stdout
    assert "going back to the save before it" in done.stdout
    same(tmp_path / "out", whole)


def test_a_folder_that_is_no_run_is_left_alone(data: Path, tmp_path: Path) -> None:
    recipe = small.write(tmp_path / "r.json", small.recipe(data))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    refused = small.kdscale("train", recipe, "--out", tmp_path / "mine", "--overwrite", expect=64)
    assert "thesis.tex" in refused.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_loss_that_is_not_finite_names_step_and_samples(data: Path, tmp_path: Path) -> None:
    recipe = small.write(
        tmp_path / "r.json", override(small.recipe(data), ["optimizer={kind: sgd, lr: 1e20}", "schedule={kind: constant}"])
    )
    failed = small.kdscale("train", recipe, "--out", tmp_path / "out", expect=70)
    assert "the loss is not finite at step" in failed.stderr
    assert "(samples " in failed.stderr
    assert small.verdict(tmp_path / "out")["code"] == 70
    for save in (tmp_path / "out" / "checkpoints").glob("step-*"):
        assert all(t.isfinite().all() for t in load_file(save / "trained.safetensors").values())


def test_a_full_disk_costs_no_save_that_was_complete(data: Path, tmp_path: Path) -> None:
    """The system's limit on the size of a file stands for the disk: the saves grow past it once the optimizer has state."""
    recipe = small.write(tmp_path / "r.json", small.recipe(data))
    small.kdscale("train", recipe, "steps=3", "--out", tmp_path / "out")
    size = (tmp_path / "out" / "checkpoints" / "step-00000003" / "trained.safetensors").stat().st_size
    words = ("train", str(recipe), "steps=22", "--out", str(tmp_path / "out"))
    room = {full_disk.ROOM: str(size // 2)}
    failed = forks.call("kdscale", *words, environment=small.environment() | room, injury="tests.engine.full_disk:full")
    assert failed.returncode == 70, failed.stdout + failed.stderr
    assert "3 saves in a row failed" in failed.stderr
    assert "step-00000003" in failed.stderr
    done = small.kdscale("train", recipe, "steps=22", "--out", tmp_path / "out")
    assert "from step 3" in done.stdout
