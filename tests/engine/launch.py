"""Starts a module of the tests on two ranks of this machine."""

from __future__ import annotations

from pathlib import Path

from tests import forks

from . import small

ROOT = forks.ROOT


def two_ranks(module: str, *words: str | Path) -> None:
    """Runs ``python -m module words`` twice, as two ranks of one world; returns when both have ended well."""
    done = forks.call(module, *words, environment=small.environment(), ranks=2, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
