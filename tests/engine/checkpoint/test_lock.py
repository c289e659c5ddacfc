"""A run folder has one holder; a dead one is replaced, by one process however many try."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdscale.engine.checkpoint import lock
from kdscale.engine.checkpoint.lock import Lock
from kdscale.errors import RunError

HOLD = """
import sys, time
from pathlib import Path
from kdscale.engine.checkpoint.lock import Lock
Lock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""

# Waits for its start, tries once, and holds what it got until its input ends.
RACE = """
import sys
from pathlib import Path
from kdscale.engine.checkpoint.lock import Lock
from kdscale.errors import RunError
path = Path(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    mine = Lock(path)
    try:
        mine.take()
        print("held", flush=True)
    except RunError as error:
        print(error, flush=True)
    sys.stdin.readline()
    mine.release()
    print("free", flush=True)
"""

# Takes the lock over and over and dies in it each time, as far as its rivals can tell; a second process inside is told.
DIE = """
import json, os, sys, time
from pathlib import Path
from kdscale.engine.checkpoint.lock import Lock
from kdscale.errors import RunError
path, inside = Path(sys.argv[1]), Path(sys.argv[1] + ".inside")
end, taken = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    mine = Lock(path)
    try:
        mine._occupy()
    except RunError:
        continue
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    assert path.read_bytes() == mine._content
    taken += 1
    inside.unlink()
    dead = path.with_name(f"dead-{os.getpid()}")
    dead.write_text(json.dumps(json.loads(mine._content) | {"started": "1"}))
    os.replace(dead, path)
print(taken)
"""


def started(program: str, *words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def write(path: Path, **holder: Any) -> None:
    path.write_text(json.dumps(holder))


def took(path: Path) -> bool:
    """Whether the lock can be had; it is given back."""
    mine = Lock(path)
    mine.take()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    mine.release()
    return not any(path.parent.iterdir())


def test_the_second_is_refused_and_a_killed_holder_replaced(tmp_path: Path) -> None:
    process = started(HOLD, tmp_path / "lock")
    assert said(process) == "held"
    try:
        with pytest.raises(RunError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
            Lock(tmp_path / "lock").take()
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert took(tmp_path / "lock")


def test_of_many_that_find_a_dead_holder_one_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    racers = [started(RACE, path) for _ in range(6)]
    assert {said(racer) for racer in racers} == {"ready"}
    for turn in range(10):
        write(path, host=socket.gethostname(), pid=os.getpid(), started=str(turn))
        for racer in racers:
            tell(racer)
        answers = [said(racer) for racer in racers]
        winner = racers[answers.index("held")].pid
        assert answers.count("held") == 1
        assert sum(f"in use by process {winner} on" in answer for answer in answers) == len(racers) - 1
        for racer in racers:
            tell(racer)
        assert {said(racer) for racer in racers} == {"free"}
        assert not any(tmp_path.iterdir())
    for racer in racers:
        racer.communicate()


def test_holders_that_die_one_after_another_never_overlap(tmp_path: Path) -> None:
    rivals = [started(DIE, tmp_path / "lock", "1.5") for _ in range(4)]
    counts = [rival.communicate()[0].strip() for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0] * len(rivals)
    assert sum(map(int, counts)) > 50


def test_another_machine_is_believed_while_it_beats(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    write(path, host="elsewhere", pid=1, started="1")
    with pytest.raises(RunError, match="elsewhere"):
        Lock(path).take()
    os.utime(path, (time.time() - lock.STALE - 1,) * 2)
    assert took(path)


def test_a_number_that_was_given_to_a_later_process_is_no_holder(tmp_path: Path) -> None:
    write(tmp_path / "lock", host=socket.gethostname(), pid=os.getpid(), started="1")
    assert took(tmp_path / "lock")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 90, b"\xff\xfe", b"[1]", b'{"host": "here", "pid": "x"}', b'{"host"'], ids=range(6)
)
def test_a_lock_that_cannot_be_read_is_dead_after_a_while(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(lock, "UNREADABLE", 0.3)
    path.write_bytes(content)
    before = time.monotonic()
    assert took(path)
    assert time.monotonic() - before >= 0.25  # it may have been on its way


def test_a_clock_that_was_set_back_keeps_no_lock_alive(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for content in (b"\0", json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}).encode()):
        path.write_bytes(content)
        os.utime(path, (time.time() + 1e6,) * 2)
        assert took(path)


def test_a_job_that_slurm_started_again_knows_its_former_self_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    mine = Lock(path)
    mine.take()
    assert json.loads(path.read_text()).items() >= {"job": "17", "restart": 2}.items()
    mine.release()
    for job, restart in (("17", 2), ("17", 3), ("16", 0), (None, 0)):
        write(path, host="elsewhere", pid=1, started="1", job=job, restart=restart)
        with pytest.raises(RunError, match="elsewhere"):
            Lock(path).take()
    write(path, host="elsewhere", pid=1, started="1", job="17", restart=1)
    assert took(path)


@pytest.mark.parametrize(("state", "dead"), [("NODE_FAIL", True), ("TIMEOUT", True), ("RUNNING", False), ("COMPLETING", False)])
def test_another_job_is_dead_where_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, dead: bool
) -> None:
    """The next job of a chain need not wait until a lost node's heart has stopped for long enough."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\n[ "$4" = 41 ] && echo "JobId=41 JobName=x JobState={state} Reason=None"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    path = tmp_path / "run" / "lock"
    path.parent.mkdir()
    write(path, pid=7, host="elsewhere", started="1", job="41", restart=0, token="t")
    refused = pytest.raises(RunError, match=r"in use by process 7 on elsewhere \(Slurm job 41\)")
    with refused:  # it beats, whatever Slurm says
        Lock(path).take()
    os.utime(path, (time.time() - 100, time.time() - 100))
    if dead:
        assert took(path)
    else:
        with refused:
            Lock(path).take()


def test_what_another_has_taken_is_neither_beaten_nor_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(lock, "BEAT", 0.02)
    mine = Lock(path)
    mine.take()
    write(path, host="elsewhere", pid=1, started="1")
    os.utime(path, (1000, 1000))
    time.sleep(0.1)
    assert path.stat().st_mtime == 1000
    mine.release()
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_the_heart_goes_on_after_an_error_and_after_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(lock, "BEAT", 0.02)
    mine = Lock(path)
    for _ in range(2):
        mine.take()
        path.rename(tmp_path / "away")
        time.sleep(0.06)
        (tmp_path / "away").rename(path)
        os.utime(path, (1000, 1000))
        assert eventually(lambda: path.stat().st_mtime > 1000)
        mine.release()


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    mine = Lock(tmp_path / "lock")
    mine.take()
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        Lock(tmp_path / "lock").take()
    mine.release()
    assert took(tmp_path / "lock")


def eventually(what: Any) -> bool:
    end = time.monotonic() + 5
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(what())
