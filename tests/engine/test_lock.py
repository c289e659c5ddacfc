"""A run folder has one holder; a dead one is replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdscale.engine import lock
from kdscale.engine.lock import Lock
from kdscale.errors import RunError

HOLD = """
import sys, time
from pathlib import Path
from kdscale.engine.lock import Lock
Lock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_the_second_is_refused_and_a_killed_holder_replaced(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    try:
        with pytest.raises(RunError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
            Lock(tmp_path / "lock").take()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    mine = Lock(tmp_path / "lock")
    mine.take()
    mine.release()
    assert not (tmp_path / "lock").exists()


def test_another_machine_is_believed_while_it_beats(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    with pytest.raises(RunError, match="elsewhere"):
        Lock(path).take()
    os.utime(path, (time.time() - lock.STALE - 1,) * 2)
    mine = Lock(path)
    mine.take()
    mine.release()


def test_a_number_that_was_given_to_a_later_process_is_no_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": "1"}))
    mine = Lock(path)
    mine.take()
    mine.release()
