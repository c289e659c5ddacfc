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
from .faults import HANG
from .last_words import JUDGES, LastWords
from .pulse import BEAT

LAST_RESORT = 60.0  # seconds: a file system that hangs too must not keep a process that has given up
CLOSING = 30.0  # seconds that a rank which has failed may take to end


class Watchdog:
    """While it lasts, :func:`pulse.beat` within every ``stall`` seconds, or the process ends."""

    def __init__(self, words: LastWords, stall: float) -> None:
        self.words, self.stall = words, stall
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
                self._give_up()

    def _give_up(self) -> None:
        """Does not return."""
        end_within(LAST_RESORT, HANG)
        words, path = self.words, self._write_stacks()
        words.pulse.tell(final=True)
        words.leave_word(HANG, f"no step for {self.stall:g} s while {words.pulse.doing}")
        if words.session.rank < JUDGES:
            said, silent = self._judged()
            reason = f"{said} for {self.stall:g} s (machine.stall), stacks are in {path.parent}/stacks-<rank>.txt"
            words.verdict(HANG, f"{reason}; {words.last_save()}: the same command continues", gone=silent, aloud=True)
        else:
            time.sleep(4 * self._period)
        for child in multiprocessing.active_children():  # a worker that is stopped would outlive everybody
            child.kill()
        os._exit(HANG)

    def _write_stacks(self) -> Path:
        """Of all threads, into a file and onto stderr."""
        here, rank = self.words.pulse.here(), self.words.session.rank
        workers = ", ".join(f"{child.pid} {state(child.pid)}" for child in multiprocessing.active_children()) or "none"
        head = (
            f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} rank {rank} on {socket.gethostname()}, process {os.getpid()}: no step for"
            f" {self.stall:g} s while {here['doing']} (step {here['step']}), at {here['line']}; worker processes: {workers}\n"
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
