"""A fork and ``python -m`` of the same module cannot be told apart by what tests look at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forks

PROGRAM = """
import atexit, os, signal, sys, threading, time
atexit.register(print, "left")
how, *words = sys.argv[1:]
print(__name__, __spec__.name, sys.modules["__main__"].__dict__ is globals(), sys.argv[0], words, os.getcwd(), sorted(os.environ.items()))
print(sys.stdin.read(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(0, []))
print(os.getpgid(0) == os.getpgid(os.getppid()), sorted(os.listdir("/dev/fd"))[:3], sys.path[0])
print("an error", file=sys.stderr)
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread to its end"))).start()
if how == "raise": raise ValueError(how)
if how == "kill": sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)
if how == "word": sys.exit("a word")
if how == "number": sys.exit(75)
"""


@pytest.mark.parametrize("how", ["return", "raise", "kill", "word", "number"])
def test_it_is_the_same_program(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    given = {"PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8", "GIVEN": "1"}
    words = [sys.executable, "-m", "program", how, "a b"]
    real = subprocess.run(words, capture_output=True, text=True, check=False, env=given, stdin=subprocess.DEVNULL)
    fork = forks.call("program", how, "a b", environment=given)
    assert (fork.returncode, fork.stdout) == (real.returncode, real.stdout)
    assert fork.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_ranks_are_told_their_places_and_hear_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys, time\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'], os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    process = forks.Forked("program", environment=dict(os.environ), ranks=2)
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(2)} == {f"{rank} 2 {pid}\n" for rank, pid in enumerate(process.pids)}
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(10) == ("", None)
    assert process.returncode == -signal.SIGTERM
    process.kill()  # of what has ended, nothing


def test_all_of_them_end_with_the_worker(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import time\ntime.sleep(60)\n")
    code = (
        f"import os, sys; sys.path.insert(0, {str(forks.ROOT)!r}); from tests import forks; os.chdir({str(tmp_path)!r});"
        "fork = forks.Forked('program', environment=dict(os.environ));"
        "print(forks.origin()._process.pid, fork.pid, flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pids = [int(word) for word in worker.stdout.readline().split()]
    worker.kill()
    worker.communicate()
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """One that nobody has asked for its code counts as ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
