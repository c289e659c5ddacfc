"""What makes a run stop, and how every rank comes to stop after the same step.

Signals only set a flag. Once a step the ranks agree on one small word (data error, stop asked, non-finite loss): no rank ever
raises alone inside a step, so none is left waiting in a collective.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from ..errors import KdscaleError

DONE, USAGE, FAULT, MEMORY, STOPPED, ABANDONED = 0, 64, 70, 71, 75, 76


class Stopped(Exception):
    """A stop was asked for; the run is saved and continues when it is started again."""

    code = STOPPED


class NonFinite(KdscaleError):
    """A loss that is not a number: the last save is kept and nothing is written after it."""

    code = FAULT


class SaveFailed(KdscaleError):
    code = FAULT


class OutOfMemory(KdscaleError):
    code = MEMORY


class Signals:
    """While it lasts, SIGTERM and Ctrl-C ask for a stop at the end of the step; a second one within 5 s ends at once (76)."""

    ASKING = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked: str | None = None
        self._at = 0.0
        self._former: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Signals:
        for number in self.ASKING:
            self._former[number] = signal.signal(number, self._seen)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _seen(self, number: int, frame: FrameType | None) -> None:
        # A terminal's Ctrl-C reaches a rank twice, from the terminal and from its launcher: within half a second it is one.
        since = time.monotonic() - self._at
        if self.asked and 0.5 < since < 5.0:
            os._exit(ABANDONED)
        self.asked = signal.Signals(number).name
        self._at = time.monotonic()
