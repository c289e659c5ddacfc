"""How an end becomes an exit code and at most one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.cli.main import fail, unreachable
from kdscale.engine.parallel import session
from tests.cli.calling import kdscale


def test_an_error_is_one_line_on_the_first_rank_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fail("a\nb", 64) == 64
    assert capsys.readouterr().err == "kdscale: a b\n"
    monkeypatch.setenv("RANK", "1")
    assert fail("a", 70) == 70
    assert capsys.readouterr().err == ""


def test_before_the_ranks_are_joined_each_machine_tells_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout that is missing on one node is a line in that node's log, not an empty one."""
    monkeypatch.setattr(session, "joined", False)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert fail("a", 64) == 64
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    fail("a", 64)
    assert capsys.readouterr().err == f"kdscale: rank 9 on {os.uname().nodename}: a\n"
    monkeypatch.setattr(session, "joined", True)
    fail("a", 64)
    assert capsys.readouterr().err == ""


def test_a_path_of_the_users_is_told_and_a_fault_of_the_system_is_traced(capsys: pytest.CaptureFixture[str]) -> None:
    assert unreachable(PermissionError(13, "Permission denied", "/there/x")) == 64
    assert capsys.readouterr().err == "kdscale: /there/x: Permission denied: give a path that can be used\n"
    assert unreachable(OSError("odd")) == 70
    assert "OSError: odd" in capsys.readouterr().err


def test_a_full_disk_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert unreachable(OSError(28, "No space left on device")) == 70
    assert capsys.readouterr().err == "kdscale: No space left on device: make room and give the same command again\n"


def test_an_interruption_before_a_run_is_130(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("raise KeyboardInterrupt\n")
    line = "kdscale: interrupted: the same command goes on from what is complete\n"
    assert kdscale("show", tmp_path / "r.py") == (130, "", line)


@pytest.mark.parametrize("words", [("show", "recipes"), ("show", "methods", "kd")])
def test_a_reader_that_has_enough_is_no_fault(words: tuple[str, ...]) -> None:
    """``| head -1``, with every line written at once."""
    command = f"set -o pipefail; {sys.executable} -u -m kdscale {' '.join(words)} | head -1"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr, len(told.stdout.splitlines())) == (0, "", 1)


def test_closed_streams_are_no_fault() -> None:
    command = f"{sys.executable} -m kdscale show methods kd >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
