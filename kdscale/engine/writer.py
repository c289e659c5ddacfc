"""Saves are written behind training: a thread of rank 0 writes, hashes, flushes and commits while the next steps compute.

Training stops for a copy in host memory alone (``keeper.collect``). One save is under way at a time, and whoever wants the
next waits for it: a save that was asked for is never left out, and a disk slower than the saves costs time, not saves.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .checkpoint import saving
from .checkpoint.folder import Folder
from .checkpoint.saving import Save
from .faults.ends import SaveFailed
from .reporter import Reporter

TRIES = 3  # saves that may fail in a row


class Writer:
    """Rank 0's. ``keep``: how many of the newest saves stay."""

    def __init__(self, folder: Folder, keep: int, reporter: Reporter) -> None:
        self.folder, self.keep, self.reporter = folder, keep, reporter
        self.failed = 0  # saves in a row
        self.seconds = 0.0  # that the last save took
        self._thread = ThreadPoolExecutor(1, "save")  # begins with the first save
        self._under_way: tuple[int, Future[Path]] | None = None  # global step

    def begin(self, save: Save) -> None:
        """Lets the thread write a save, whose tensors are copies that nothing else writes to; none may be under way."""
        save = replace(save, facts=copy.deepcopy(save.facts))  # the memory in them goes on
        step = int(save.facts["memory"]["global_step"])
        self._under_way = step, self._thread.submit(self._commit, step, save)

    def outcome(self, last: Path | None, wait: bool) -> tuple[bool, Path | None]:
        """Whether a save is still under way, and the last complete one; ``last``: the one before it.

        A failure is told, and the run goes on without; three in a row raise SaveFailed. What is no failure of the disk is
        raised as it is.
        """
        if self._under_way is None:
            return False, last
        step, future = self._under_way
        if not wait and not future.done():
            return True, last
        self._under_way = None
        try:
            path = future.result()
        except OSError as error:
            self._failure(step, error, last)
            return False, last
        self.failed = 0
        return False, path

    def _failure(self, step: int, error: OSError, last: Path | None) -> None:
        self.failed += 1
        self.reporter.say(f"could not save at step {step}: {error}; the last save is {last or 'none'}")
        if self.failed >= TRIES:
            raise SaveFailed(
                f"{TRIES} saves in a row failed ({error}); the last complete save is {last or 'none'}: make room and start again"
            ) from None

    def close(self) -> None:
        """Waits for the save under way, however the run is left: it is a good one."""
        self._thread.shutdown()
        if self._under_way is not None and (error := self._under_way[1].exception()) is not None:
            self.reporter.say(f"could not save at step {self._under_way[0]}: {error}")

    def _commit(self, step: int, save: Save) -> Path:
        """On the thread: the save, and then what it makes of those before it."""
        started = time.perf_counter()
        path = saving.write(self.folder.checkpoints, step, save)
        self.seconds = time.perf_counter() - started
        with suppress(OSError):  # the save stands; the next one tries again
            self._clear_up(step, save.facts["memory"])
        return path

    def _clear_up(self, step: int, memory: dict[str, Any]) -> None:
        best = memory["best_step"]
        if best is not None and best != self.folder.best_step():
            found = self.folder.checkpoints / saving.name_of(best)
            if found.is_dir():
                self.folder.point_best(found)
        kept = {best or -1, *memory["kept"], self.folder.best_step()}
        saving.keep(self.folder.checkpoints, self.keep, kept, step)
