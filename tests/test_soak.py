"""Ten runs of the soak, with a seed of the day."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.ranks
def test_ten_runs_that_are_killed_end_bit_equal() -> None:
    words = [sys.executable, "-m", "tests.soak", "--runs", "10"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "10 of 10 runs end bit-equal" in done.stdout
