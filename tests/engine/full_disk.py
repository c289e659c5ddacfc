"""A disk with room for small files alone: the system's limit on the size of a file stands for it."""

from __future__ import annotations

import os
import resource
import signal

ROOM = "ROOM"  # the variable with the most bytes of a file


def full() -> None:
    """Every longer write of this process fails from here on, with an error rather than a signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    room = int(os.environ[ROOM])
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
