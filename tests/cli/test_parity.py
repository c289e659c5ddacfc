"""``kdscale parity`` on the small recipe: real runs on two ranks, one that is not the same, one that is stopped."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from kdscale.engine.parity.runs import Parity, Row
from tests.engine import small

from .calling import done, kdscale, refused


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small.write(tmp_path / "recipe.json", small.recipe(small.shards(tmp_path / "data")))


def test_a_misuse_is_told_in_a_line(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'gspmd' is no back-end; they are ddp, zero1, zero2, zero3, fsdp2" in refused("parity", recipe, "--only", "gspmd")
    assert "not divisible by ranks 5" in refused("parity", recipe, "--ranks", "5", "data.batch=24", "data.train.mixup=0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in refused("parity", recipe)


@pytest.mark.slow
@pytest.mark.ranks
def test_back_ends_are_alike_and_the_table_says_so(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = done("parity", recipe, "--only", "ddp,zero2,fsdp2", "-n", "2", "--steps", "8", "--out", out)
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "one process: 4" in said
    assert rows["one process"].endswith("reference")
    assert "one process" in rows["ddp"]
    assert all("ddp on 2" in rows[name] for name in ("zero2", "fsdp2"))
    assert all(rows[name].endswith("within tolerance") for name in ("ddp", "zero2", "fsdp2"))
    assert "tolerance against one process: a loss 2e-05" in said
    assert "tolerance against ddp on 2: a loss 5e-06" in said
    assert len(small.lines(out / "fsdp2")) == 8


@pytest.mark.slow
@pytest.mark.ranks
def test_a_run_that_is_another_is_told_and_kept(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Parity._command

    def other(self: Parity, row: Row) -> list[str]:
        words = plain(self, row)
        return [*words[:-3], "seed=1", *words[-3:]] if row.name == "fsdp2" else words

    monkeypatch.setattr(Parity, "_command", other)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = kdscale("parity", recipe, "--only", "fsdp2", "-n", "2", "--steps", "4")
    assert said.code == 70
    assert "NOT within tolerance: '" in said.out
    assert "weights of 01-student/student" in said.out
    kept = Path(said.out.splitlines()[-1].removeprefix("the runs are in "))
    assert kept.parent == tmp_path
    assert (kept / "fsdp2" / "metrics.jsonl").exists()
    assert (kept / "fsdp2.log").exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_a_back_end_that_refuses_is_no_fault_and_nothing_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = done("parity", recipe, "phases.student.optimizer={kind: timm, name: lamb}", "--only", "fsdp2", "--steps", "2")
    assert "refused: machine.parallel=fsdp2 cuts tensors" in said
    assert list(tmp_path.glob("kdscale-parity-*")) == []


@pytest.mark.slow
@pytest.mark.ranks
def test_a_signal_ends_the_run_under_way_with_all_its_ranks(recipe: Path, tmp_path: Path) -> None:
    """The student draws for itself, so the first run is that of two ranks."""
    out, draws = tmp_path / "out", "networks.student.args.patch_drop_rate=0.5"
    process = small.start("parity", recipe, draws, "steps=4000", "--steps", "4000", "--only", "fsdp2", "-n", "2", "--out", out)
    try:
        while not small_steps(out / "ddp"):
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 76
    finally:
        process.kill()
    left = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout.split()
    assert left == []


def small_steps(out: Path) -> bool:
    return (out / "metrics.jsonl").exists() and bool(small.lines(out))
