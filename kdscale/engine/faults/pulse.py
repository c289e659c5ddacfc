"""Where this process is, and where the other ranks said that they were: a counter which every piece of work moves on.

All ranks run one program, so equal counts are one place in it, and of ranks that wait for each other the one with the lowest
count is waited for. A thread tells the count to the launcher's store, over a connection of its own: one that blocks in a
collective holds its own. Where rank 0 holds the store and dies, the others are without an answer, which says enough.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
from typing import Any

from ..parallel import Session
from .contact import Contact

BEAT = 5.0  # seconds
WAITING = ("torch/distributed/", "torch/autograd/graph.py", "torch/cuda/")  # where a rank waits for others, or for what does


class Pulse:
    """``doing``: in a word or two; ``place``: phase, step and global_step as far as they are known."""

    def __init__(self, session: Session) -> None:
        """A collective: when it returns every rank has told its first beat."""
        self.rank, self.size = session.rank, session.size
        self.count, self.doing, self.place = 0, "starting", dict[str, Any]()
        self._tick = 0
        self._thread = threading.main_thread().ident
        run = session.told(secrets.token_hex(4))
        self._contact = Contact(run) if session.size > 1 else None
        self.tell()
        session.wait()

    def beat(self, doing: str, **place: Any) -> None:
        self.doing = doing
        self.place |= place
        self.count += 1

    def tell(self, final: bool = False) -> None:
        """To the store. ``final``: this rank has given up waiting."""
        if self._contact is None:
            return
        self._tick += 1
        self._contact.tell(str(self.rank), json.dumps({"tick": self._tick, "final": final, **self.here()}))

    def here(self) -> dict[str, Any]:
        """The count, what is done in words, the line that the main thread is at, and whether it waits for others there."""
        frame = sys._current_frames().get(self._thread or 0)
        code = None if frame is None else frame.f_code
        file = "" if code is None else code.co_filename.replace(os.sep, "/")
        line = "" if frame is None or code is None else f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno} {code.co_name}"
        return {
            "count": self.count,
            "doing": self.doing,
            "step": self.place.get("step"),
            "line": line,
            "waits": any(place in file for place in WAITING),
        }

    def all(self) -> list[dict[str, Any]] | None:
        """What every rank said last, by rank; None where the store does not answer now."""
        said = None if self._contact is None else self._contact.ask([str(rank) for rank in range(self.size)])
        return None if said is None else [json.loads(word) for word in said]


_here: Pulse | None = None  # a process has one


def take(pulse: Pulse | None) -> None:
    """``pulse`` becomes the one that :func:`beat` moves."""
    global _here
    _here = pulse


def beat(doing: str, **place: Any) -> None:
    """Says that the process has come as far as this; outside of a run it says nothing."""
    if _here is not None:
        _here.beat(doing, **place)
