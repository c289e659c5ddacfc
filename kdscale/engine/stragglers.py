"""A rank that holds the others up with its data: all ranks step together, so the slowest machine sets the pace of all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

LINES = 3  # of the log, in a row
SHARE = 0.1  # of the time, from which it matters
TIMES = 1.5  # the median rank's wait


class Stragglers:
    """Follows the lines of a log, and finds a rank once, when it has been slow for ``LINES`` of them."""

    def __init__(self) -> None:
        self._lines: dict[int, int] = {}  # rank -> lines in a row
        self._told: set[int] = set()

    def found(self, waits: Sequence[float]) -> list[int]:
        """Ranks to tell of. ``waits``: the share of time in which each rank waited for data, in order of rank."""
        median = statistics.median(waits)
        slow = [rank for rank, wait in enumerate(waits) if wait > SHARE and wait > TIMES * median]
        self._lines = {rank: self._lines.get(rank, 0) + 1 for rank in slow}
        found = [rank for rank in slow if self._lines[rank] >= LINES and rank not in self._told]
        self._told.update(found)
        return found
