"""Starts a module of the tests on two ranks of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import small

ROOT = Path(__file__).resolve().parents[2]


def two_ranks(module: str, *words: str | Path) -> None:
    """Runs ``python -m module words`` twice, as two ranks of one world; returns when both have ended well."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    done = subprocess.run(
        [*launcher, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=small.environment(),
        cwd=ROOT,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
