"""The lock of a build that was killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdscale.engine.parallel.operation import _refuse_stale
from kdscale.errors import RunError


def test_a_build_that_never_ended_is_told_and_one_under_way_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    _refuse_stale(lock)
    lock.touch()
    _refuse_stale(lock)
    os.utime(lock, (0, 0))
    with pytest.raises(RunError, match=rf"{lock} is of a build .* never ended: delete it"):
        _refuse_stale(lock)
