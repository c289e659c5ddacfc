"""Whole runs, in processes of their own, that are hit while a save of theirs stands half-written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdscale.engine.checkpoint import saving
from tests.engine import small
from tests.engine.launch import ROOT
from tests.engine.mishaps import log, newest_whole, saved
from tests.engine.test_run import same

pytestmark = pytest.mark.slow

HELD = 6  # the step whose save stops half-way


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe file, output) of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = small.write(folder / "r.json", small.recipe(data))
    small.kdscale("train", recipe, "--out", folder / "out")
    return recipe, folder / "out"


@contextmanager
def held(recipe: Path, out: Path, ranks: int = 1) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run that has gone on for two steps past a save that stands half-written, and the mark that holds the write."""
    mark = out.parent / "mark"
    command = small.command("train", recipe, "--out", out, ranks=ranks)
    at = command.index("kdscale")
    process = subprocess.Popen(
        [*command[:at], "tests.engine.held_writer", str(HELD), str(mark), *command[at + 1 :]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=small.environment(),
        cwd=ROOT,
    )
    try:
        small.wait_for_step(process, HELD + 2)
        until(mark.exists)  # where the machine is busy the writer may be behind by more than two steps
        yield process, mark
    finally:
        kill(process)
        process.communicate()


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill(process: subprocess.Popen[str]) -> None:
    """A launcher and its ranks, at once."""
    asked = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    ranks = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    for pid in (process.pid, *map(int, ranks)) if process.poll() is None else ():
        os.kill(pid, signal.SIGKILL)
    process.wait()


def goes_on(recipe: Path, out: Path, step: int, whole: Path, ranks: int = 1) -> None:
    done = small.kdscale("train", recipe, "--out", out, ranks=ranks)
    assert f"from step {step}" in done.stdout
    same(out, whole)
    assert saving.unfinished(out / "checkpoints") == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_in_the_middle_of_a_write_it_continues_to_the_same_bits(
    ranks: int, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, uninterrupted = whole
    if ranks > 1:
        uninterrupted = tmp_path / "uninterrupted"
        small.kdscale("train", recipe, "--out", uninterrupted, ranks=ranks)
    with held(recipe, tmp_path / "out", ranks) as (process, _):
        kill(process)
    assert newest_whole(tmp_path / "out") == HELD - 3
    listed = small.kdscale("checkpoints", tmp_path / "out")
    assert f".tmp-{saving.name_of(HELD)}" in listed.stdout
    assert len(saving.unfinished(tmp_path / "out" / "checkpoints")) == 1, "listing removes nothing"
    assert max(line["global_step"] for line in small.lines(tmp_path / "out")) >= HELD + 2
    goes_on(recipe, tmp_path / "out", HELD - 3, uninterrupted, ranks)


def test_a_signal_waits_for_the_write_that_it_met(whole: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, uninterrupted = whole
    with held(recipe, tmp_path / "out") as (process, mark):
        listed = small.kdscale("checkpoints", tmp_path / "out")
        assert f".tmp-{saving.name_of(HELD)}" in listed.stdout, "a run that trains may be looked at"
        process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert process.poll() is None, "it has left although its save is not complete"
        assert not (tmp_path / "out" / "verdict.json").exists()
        mark.unlink()
        assert process.wait(60) == 75
    stopped = newest_whole(tmp_path / "out")
    assert stopped is not None
    assert stopped >= HELD + 2
    assert HELD in saved(tmp_path / "out")
    goes_on(recipe, tmp_path / "out", stopped, uninterrupted)


def test_a_second_signal_gives_up_the_write(whole: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, uninterrupted = whole
    with held(recipe, tmp_path / "out") as (process, _):
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 76
    assert newest_whole(tmp_path / "out") == HELD - 3
    goes_on(recipe, tmp_path / "out", HELD - 3, uninterrupted)


def test_a_full_disk_ends_all_ranks_with_one_line(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk, and only rank 0 meets it; saves grow past it with the optimizer's state."""
    recipe, out = whole[0], tmp_path / "out"
    small.kdscale("train", recipe, "steps=3", "--out", out, ranks=2)
    size = (out / "checkpoints" / saving.name_of(3) / "trained.safetensors").stat().st_size // 2
    failed = subprocess.run(
        small.command("train", recipe, "steps=22", "--out", out, ranks=2),
        capture_output=True,
        text=True,
        check=False,
        env=small.environment(),
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert failed.returncode != 0
    assert failed.stderr.count("kdscale: 3 saves in a row failed") == 1, failed.stderr[-3000:]
    assert small.verdict(out)["code"] == 70
    assert [f"could not save at step {step}: " in log(out) for step in (6, 9, 12, 15)] == [True, True, True, False]
    assert newest_whole(out) == 3
    done = small.kdscale("train", recipe, "steps=22", "--out", out, ranks=2)
    assert "from step 3" in done.stdout


@pytest.mark.parametrize("parallel", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_training_goes_on_in_no_tensor_of_a_save(parallel: str, tmp_path: Path) -> None:
    """On one rank some back-ends hold whole tensors, and would hand out the very ones that they train."""
    words = [sys.executable, "-m", "tests.engine.handed_out", parallel, str(tmp_path / "data")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=small.environment(), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
