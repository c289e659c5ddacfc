"""Signals ask for a stop, and only set a flag: the loop and the evaluation look at it, and the ranks agree.

A job's time limit, where the scheduler has told it, asks in the same way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from .deadline import Deadline
from .ends import ABANDONED


class Signals:
    """While it lasts, SIGTERM, SIGUSR1 and Ctrl-C ask for a stop at the end of the step; a second one within 5 s ends at once (76).

    Schedulers announce the end of a job by either of the first two; where they have told its time instead, that asks too.
    """

    ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.deadline = Deadline()
        self._asked: str | None = None
        self.abandon: Callable[[str], None] = lambda name: None  # what there is to do before a second signal ends the process
        self._at = 0.0
        self._former: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Signals:
        global _here
        _here = self
        for number in self.ASKING:
            self._former[number] = signal.signal(number, self._seen)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _here
        _here = None
        for number, former in self._former.items():
            signal.signal(number, former)

    @property
    def asked(self) -> str | None:
        """What asked for a stop, if anything did."""
        if self._asked is None and self.deadline.near:
            self._asked = "the job's time limit"
        return self._asked

    def ask(self, what: str) -> None:
        self._asked = what

    def _seen(self, number: int, frame: FrameType | None) -> None:
        # A terminal's Ctrl-C reaches a rank twice, from the terminal and from its launcher: within half a second it is one.
        since = time.monotonic() - self._at
        if self._asked and 0.5 < since < 5.0:
            try:
                self.abandon(signal.Signals(number).name)
            finally:
                os._exit(ABANDONED)
        self.ask(signal.Signals(number).name)
        self._at = time.monotonic()


_here: Signals | None = None  # a process has one set of handlers


def asked() -> str | None:
    """What asked this process to stop, if anything did."""
    return None if _here is None else _here.asked
