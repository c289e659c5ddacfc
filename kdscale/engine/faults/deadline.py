"""The end of a batch job's time: a run saves and leaves before the scheduler kills it.

Slurm tells the processes of a job when that will be (SLURM_JOB_END_TIME, seconds since 1970). A batch script may ask for a
signal in time, and a save that takes longer than that leaves it may not; a run under plain ``srun`` gets no other warning.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

MARGIN = 60.0  # seconds beside the step and the save: Slurm may be early by as much


class Deadline:
    """``step``, ``save``: the seconds that the last ones took, as far as they are known."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        word = environment.get("SLURM_JOB_END_TIME", "")
        left = float(word) - time.time() if word.isdecimal() else 0.0
        self._end = float(word) if left > 0 else None  # one that is over already was put off, and nobody has told for how long
        self._most = left / 4  # a job of a minute must train too
        self.step = self.save = 0.0

    @property
    def near(self) -> bool:
        """Whether what is left is needed for a last step and a save."""
        if self._end is None:
            return False
        return time.time() > self._end - min(MARGIN + 2 * (self.step + self.save), self._most)
