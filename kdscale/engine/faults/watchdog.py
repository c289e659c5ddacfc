"""A watch over the main thread: when no work has come further for a stated time, stacks are written and the process ends (72).

A rank that hangs makes all others wait, so every rank's own watch finds its own main thread still; then they compare how far
each has come, and the one that is waited for is named. Time in which the whole process was stopped (a suspended job, Ctrl-Z)
does not count. Nothing here needs the main thread or a collective; a call that holds the interpreter's lock for ever is found
by the other ranks alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from . import pulse
from .ends import HANG
from .last_words import LastWords
from .pulse import BEAT

LAST_RESORT = 60.0  # seconds: a file system that hangs too must not keep a process that has given up
SILENT = 60.0  # seconds without a beat, of which there are twelve in them
CLOSING = 30.0  # seconds that a rank which has failed may take to end


class Watchdog:
    """While it lasts, :func:`pulse.beat` within every ``stall`` seconds, or the process ends."""

    def __init__(self, words: LastWords, stall: float) -> None:
        self.words, self.stall = words, stall
        self._listens = 0.0  # when it asks the next time what the others told
        self._ticks: list[int] = []  # of all ranks, when it asked last
        self._unanswered = 0  # times in a row
        self._silent: set[int] = set()  # ranks that had told nothing new then
        self._over = threading.Event()
        self._period = min(BEAT, stall / 4)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        pulse.take(self.words.pulse)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pulse.take(None)
        self._over.set()

    def _watch(self) -> None:
        quiet, seen, before = 0.0, -1, time.monotonic()
        while not self._over.wait(self._period):
            now = time.monotonic()
            quiet += min(now - before, 2 * self._period)
            before = now
            if self.words.pulse.count != seen:
                seen, quiet = self.words.pulse.count, 0.0
            self.words.pulse.tell()
            if quiet >= self.stall:
                self._give_up(self.stall, " (machine.stall)")
            elif self._left_alone(now) and quiet >= SILENT:
                self._give_up(SILENT)

    def _left_alone(self, now: float) -> bool:
        """Whether some rank has told nothing for twice SILENT seconds. Where a machine is lost NCCL says nothing, and a step that
        needs it never ends. It is told after the first of them."""
        words = self.words
        if words.session.size == 1 or not words.judging or now < self._listens:
            return False
        self._listens = now + SILENT
        still = self._still()
        gone, self._silent = still & self._silent, still
        if still - gone and words.session.rank == min(set(range(words.session.size)) - still):
            words.tell(f"nothing was heard of {words.all_named(sorted(still))} for {SILENT:g} s: is the machine down?")
        return bool(gone)

    def _still(self) -> set[int]:
        """Ranks that have told nothing since this was asked last. The store is on the machine of the first: where it gives no
        answer twice in a row, over connections of their own, that machine is as silent as a rank."""
        words, before = self.words, self._ticks
        said, mine = words.pulse.all(), words.session.rank
        self._unanswered = self._unanswered + 1 if said is None else 0
        if said is None:
            elsewhere = words.members[0]["host"] != words.members[mine]["host"]
            return {0} if before and elsewhere and self._unanswered > 1 else set()
        self._ticks = [word["tick"] for word in said]
        told = enumerate(zip(said, before or (), strict=False))
        return {r for r, (word, tick) in told if word["tick"] == tick and not word["final"] and r != mine}

    def _give_up(self, limit: float, why: str = "") -> None:
        """Does not return."""
        end_within(LAST_RESORT, HANG)
        words, path = self.words, self._write_stacks(limit)
        words.pulse.tell(final=True)
        words.leave_word(HANG, f"no step for {limit:g} s while {words.pulse.doing}")
        if words.judging:
            said, silent = self._judged()
            reason = f"{said} for {limit:g} s{why}, stacks are in {path.parent}/stacks-<rank>.txt"
            words.verdict(HANG, f"{reason}; {words.last_save()}: the same command continues", gone=silent, aloud=True)
        else:
            time.sleep(4 * self._period)
        for child in multiprocessing.active_children():  # a worker that is stopped would outlive everybody
            child.kill()
        os._exit(HANG)

    def _write_stacks(self, limit: float) -> Path:
        """Of all threads, into a file and onto stderr."""
        here, rank = self.words.pulse.here(), self.words.session.rank
        workers = ", ".join(f"{child.pid} {state(child.pid)}" for child in multiprocessing.active_children()) or "none"
        head = (
            f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} rank {rank} on {socket.gethostname()}, process {os.getpid()}: no step for"
            f" {limit:g} s while {here['doing']} (step {here['step']}), at {here['line']}; worker processes: {workers}\n"
        )
        path = self.words.folder.path / f"stacks-{rank}.txt"
        sys.stderr.write(head)
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
        with contextlib.suppress(OSError), path.open("a") as file:
            file.write(head)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path

    def _judged(self) -> tuple[str, list[int]]:
        """Who hung where, and which ranks do not answer. The others give up at about the same time: they are waited for."""
        words = self.words
        mine, size = words.pulse.here(), words.session.size
        if size == 1:
            return f"{words.named(0)} hung while {mine['doing']} (step {mine['step']}, {mine['line']})", []
        first, last = self._heard()
        if first is None or last is None:
            me = words.named(words.session.rank)  # the store is rank 0's, or its launcher's
            return f"{words.named(0)} does not answer; {me} waited while {mine['doing']} (step {mine['step']})", [0]
        silent = [r for r in range(size) if not last[r]["final"] and last[r]["tick"] == first[r]["tick"]]
        late = silent or waited_for(last)
        place = last[late[0]]
        how = "does not answer, last heard of" if silent else "hung"
        return f"{words.all_named(late)} {how} while {place['doing']} (step {place['step']}, {place['line']})", silent

    def _heard(self) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]] | None]:
        """What all ranks say now, and when each has given up or had the time to."""
        end = time.monotonic() + 4 * self._period
        first = last = self.words.pulse.all()
        while last is not None and not all(word["final"] for word in last) and time.monotonic() < end:
            time.sleep(self._period / 10)
            last = self.words.pulse.all()
        return first, last


def waited_for(said: list[dict[str, Any]]) -> list[int]:
    """Ranks that have come least far, without those of them that wait for others."""
    least = min(word["count"] for word in said)
    late = [rank for rank, word in enumerate(said) if word["count"] == least]
    return [rank for rank in late if not said[rank]["waits"]] or late


def state(pid: int | None) -> str:
    """Of a process, in the kernel's letter: T is stopped, D waits for a disk."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"


def end_within(seconds: float, code: int) -> None:
    """Ends the process if it has not ended by itself: what is torn down after a fault may wait for ranks that are gone."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
