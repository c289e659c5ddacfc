"""What a rank that hangs, dies or fails alone leaves behind, and who says so for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.checkpoint.lock import started
from kdscale.engine.faults import ends, last_words, pulse
from kdscale.engine.faults.ends import RankLost
from kdscale.engine.faults.last_words import LastWords
from kdscale.engine.faults.watchdog import Watchdog, state, waited_for
from kdscale.engine.parallel import Session
from tests.engine import small


def forked(work: Callable[[], None]) -> int:
    """The pid of a process that does ``work`` and ends with 0."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_process_that_comes_no_further_writes_its_stacks_and_ends(session: Session, tmp_path: Path) -> None:
    def work() -> None:
        sys.stderr = (tmp_path / "stderr").open("w")
        with Watchdog(LastWords(Folder(tmp_path), session, 1), 0.6):
            pulse.beat("computing", phase="student", step=4, global_step=9)
            time.sleep(60)

    assert code_of(forked(work)) == ends.HANG == 72
    verdict = small.verdict(tmp_path)
    assert verdict.items() >= {"code": 72, "phase": "student", "step": 4, "global_step": 9, "last_save": None}.items()
    assert " hung while computing (step 4, faults/test_watchdog.py:" in verdict["reason"]
    assert "there is no save yet: the same command continues" in verdict["reason"]
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "no step for 0.6 s while computing (step 4)" in stacks
    assert "in work" in stacks
    assert verdict["reason"] in (tmp_path / "log.txt").read_text()
    assert json.loads((tmp_path / "fault-0.json").read_text())["code"] == 72


@pytest.mark.slow
def test_time_in_which_the_whole_process_was_stopped_does_not_count(session: Session, tmp_path: Path) -> None:
    def work() -> None:
        with Watchdog(LastWords(Folder(tmp_path), session, 1), 3):
            end = time.monotonic() + 8
            while time.monotonic() < end:
                pulse.beat("computing")
                time.sleep(0.05)

    pid = forked(work)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    assert state(pid) in "TR"
    time.sleep(7)
    os.kill(pid, signal.SIGCONT)
    assert code_of(pid) == 0


def word(count: int, waits: bool = False) -> dict[str, Any]:
    return {"count": count, "waits": waits}


def test_of_ranks_that_wait_the_one_that_came_least_far_is_waited_for() -> None:
    assert waited_for([word(7), word(6), word(7)]) == [1]
    assert waited_for([word(7, True), word(7), word(7, True)]) == [1]
    assert waited_for([word(7, True), word(7, True)]) == [0, 1]
    assert waited_for([word(6, True), word(7), word(7)]) == [0]


def member(pid: int, alive: bool = True, host: str | None = None) -> dict[str, Any]:
    here = os.uname().nodename if host is None else host
    return {"host": here, "pid": pid, "started": started(pid) if alive else "1"}


def three(session: Session, folder: Path, rank: int, *dead: int) -> LastWords:
    """Rank ``rank`` of three on this machine, some of which are gone."""
    words = LastWords(Folder(folder), session, 4)
    words.session = replace(session, rank=rank, size=3)
    words.members = [member(os.getpid(), alive=number not in dead) for number in range(3)]
    return words


class Heard:
    """What a judge hears, one answer a time."""

    def __init__(self, *answers: list[int] | None) -> None:
        self.answers = [None if ticks is None else [{"tick": tick, "final": False} for tick in ticks] for ticks in answers]

    def all(self) -> list[dict[str, Any]] | None:
        return self.answers.pop(0)


def listening(session: Session, folder: Path, rank: int, *answers: list[int] | None) -> list[set[int]]:
    """Whom a watchdog of the second of two machines finds still, time after time."""
    words = three(session, folder, rank)
    words.members = [member(1, host=host) for host in ("a", "a", "b")]
    words.pulse = Heard(*answers)  # type: ignore[assignment]
    watch = Watchdog(words, 600)
    return [watch._still() for _ in answers]


def test_a_rank_that_tells_nothing_new_is_still(session: Session, tmp_path: Path) -> None:
    assert listening(session, tmp_path, 2, [1, 1, 1], [13, 1, 13], [25, 1, 25], [37, 7, 37]) == [set(), {1}, {1}, set()]


def test_a_store_that_is_silent_once_is_no_machine_that_is_lost(session: Session, tmp_path: Path) -> None:
    assert listening(session, tmp_path, 2, [1, 1, 1], None, [25, 20, 25], None, None) == [set(), set(), set(), set(), {0}]
    assert listening(session, tmp_path, 1, [1, 1, 1], None, None, None) == [set()] * 4  # it shares the store's machine


def test_whichever_machine_is_lost_a_judge_is_left(session: Session, tmp_path: Path) -> None:
    words = three(session, tmp_path, 0)
    words.members = [member(1, host=f"n{rank // 16}") for rank in range(64)]
    judges = []
    for rank in range(64):
        words.session = replace(session, rank=rank, size=64)
        judges += [rank] if words.judging else []
    assert judges == [*range(8), 16, 32, 48]


def closed() -> RuntimeError:
    return RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:51377")


def test_a_rank_that_is_gone_is_named_by_those_that_lost_it(session: Session, tmp_path: Path) -> None:
    fault, alone = three(session, tmp_path, 0, 2).judge(closed())
    assert alone
    assert isinstance(fault, RankLost)
    assert fault.code == 70
    assert str(fault).startswith("rank 2 on ")
    assert "died without a word" in str(fault)


def test_the_earliest_of_those_that_left_a_word_is_the_cause(session: Session, tmp_path: Path) -> None:
    """Those that only lost contact are no cause, whenever they said so."""
    three(session, tmp_path, 1).leave_word(70, "Connection closed by peer", lost=True)
    three(session, tmp_path, 2).judge(MemoryError())
    assert json.loads((tmp_path / "fault-2.json").read_text())["code"] == 71
    fault, _ = three(session, tmp_path, 0).judge(closed())
    assert getattr(fault, "code", None) == 71
    assert "out of memory: double machine.accumulate (4) or use a smaller batch" in str(fault)


def test_words_of_a_former_start_are_no_cause(session: Session, tmp_path: Path) -> None:
    three(session, tmp_path, 2).leave_word(71, "of before")
    now = three(session, tmp_path, 0, 2)
    now.members[2] = member(1, alive=False)
    assert "died without a word" in str(now.judge(closed())[0])


def test_a_rank_that_was_slower_takes_the_verdict_that_is_there(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(session, tmp_path, 0).verdict(72, "rank 2 hung")
    fault, _ = three(session, tmp_path, 1).judge(closed())
    assert (str(fault), getattr(fault, "code", None)) == ("rank 2 hung", 72)
    (tmp_path / "verdict.json").unlink()
    monkeypatch.setattr(last_words, "PATIENCE", 0.3)
    assert "contact with the other ranks was lost" in str(three(session, tmp_path, 1).judge(closed())[0])


@pytest.mark.parametrize(("dead", "writers"), [((), [0]), ((0,), [1]), ((0, 1), [2])])
def test_the_first_rank_that_lives_writes_the_verdict(
    dead: tuple[int, ...], writers: list[int], session: Session, tmp_path: Path
) -> None:
    wrote = []
    for rank in (r for r in range(3) if r not in dead):
        (tmp_path / "verdict.json").unlink(missing_ok=True)
        three(session, tmp_path, rank, *dead).verdict(70, "over")
        if (tmp_path / "verdict.json").exists():
            wrote.append(rank)
    assert wrote == writers


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
    ],
)
def test_every_way_to_be_out_of_memory(error: BaseException, session: Session, tmp_path: Path) -> None:
    fault, alone = LastWords(Folder(tmp_path), session, 1).judge(error)
    assert getattr(fault, "code", None) == 71
    assert not alone  # one process
    assert ("the device is" in str(fault)) == ("CUDA" in str(error))


def test_a_second_signal_leaves_a_verdict(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from kdscale.engine.faults.signals import Signals\n"
        "with Signals() as signals:\n"
        "    signals.abandon = lambda name: Path(sys.argv[1]).write_text(name)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"  # of a launcher that hands on what came by itself
        "    time.sleep(0.7)\n"
        "    print(signals.asked, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "told")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, (tmp_path / "told").read_text()) == (76, "SIGUSR1\n", "SIGTERM")
