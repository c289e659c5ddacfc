"""torchrun and what it does of itself: hand signals on, end the other ranks, start them again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import small
from tests.engine.stable import ROOT, Stable, children
from tests.engine.test_run import same

pytestmark = [pytest.mark.slow, pytest.mark.ranks]


def launched(recipe: Path, out: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return subprocess.Popen(
        [*words, "-m", "kdscale", "train", str(recipe), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=small.environment() | variables,
        cwd=ROOT,
    )


def test_a_launcher_whose_rank_is_killed_ends_with_the_reason(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    """A new launcher process is the restart: the same command."""
    process = launched(recipe, tmp_path / "out")
    small.wait_for_step(process, 8)
    victim = children(process.pid)[1]
    os.kill(victim, signal.SIGKILL)
    assert process.communicate(timeout=60)[0] is not None
    assert process.returncode == 1
    assert f"(process {victim}) died without a word: killed" in small.verdict(tmp_path / "out")["reason"]
    again = launched(recipe, tmp_path / "out")
    assert "from step " in again.communicate(timeout=120)[0]
    assert again.returncode == 0
    same(tmp_path / "out", whole)


def test_a_launcher_that_starts_its_ranks_again(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    """Without the variable the new ranks may read the addresses of the dead ones in the launcher's store, and hang or die."""
    out = tmp_path / "out"
    process = launched(recipe, out, "--max-restarts", "1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    small.wait_for_step(process, 8)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "from step " in said
    same(out, whole)


def test_a_launcher_that_is_told_of_usr1_hands_it_on(recipe: Path, whole: Path, forks: Stable, tmp_path: Path) -> None:
    process = launched(recipe, tmp_path / "out", "--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1")
    small.wait_for_step(process, 8)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert small.verdict(tmp_path / "out")["code"] == 75
    forks.train(recipe, out=tmp_path / "out", ranks=2)
    same(tmp_path / "out", whole)
