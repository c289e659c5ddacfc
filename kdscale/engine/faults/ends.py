"""What a run ends with: exit codes, and the errors that carry them.

Once a step, and once a batch of an evaluation, the ranks agree on one small word (data error, stop asked, non-finite loss): no
rank ever raises alone inside a step, so none is left waiting in a collective. What a rank cannot agree on (it was killed, it
hangs, its memory is full) is told by files: see ``last_words`` and ``watchdog``.
"""

from __future__ import annotations

from ...errors import KdscaleError

DONE, USAGE, FAULT, MEMORY, HANG, STOPPED, ABANDONED = 0, 64, 70, 71, 72, 75, 76


class Stopped(Exception):
    """A stop was asked for; the run is saved and continues when it is started again."""

    code = STOPPED


class NonFinite(KdscaleError):
    """A loss that is not a number: the last save is kept and nothing is written after it."""

    code = FAULT


class Drifted(KdscaleError):
    """The ranks hold different weights."""

    code = FAULT


class SaveFailed(KdscaleError):
    code = FAULT


class OutOfMemory(KdscaleError):
    code = MEMORY


class RankLost(KdscaleError):
    """Another rank has ended; its own code and words where it left any."""

    def __init__(self, text: str, code: int = FAULT) -> None:
        super().__init__(text)
        self.code = code
