"""Where this process is, and where the other ranks said that they were: a counter which every piece of work moves on.

All ranks run one program, so equal counts are one place in it, and of ranks that wait for each other the one with the lowest
count is waited for. A thread tells the count to the launcher's store, over a connection of its own: one that blocks in a
collective holds its own. Where rank 0 holds the store and dies, the others are left without, which says enough.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import sys
import threading
from typing import Any

import torch.distributed as dist

from ..parallel import Session

BEAT = 5.0  # seconds
ANSWER = 5.0  # seconds that the store may take
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
        self._store = _connected(run) if session.size > 1 else None
        self.tell()
        session.wait()

    def beat(self, doing: str, **place: Any) -> None:
        self.doing = doing
        self.place |= place
        self.count += 1

    def tell(self, final: bool = False) -> None:
        """To the store. ``final``: this rank has given up waiting."""
        if self._store is None:
            return
        self._tick += 1
        said = {"tick": self._tick, "final": final, **self.here()}
        try:
            self._store.set(str(self.rank), json.dumps(said))
        except RuntimeError:
            self._store = None

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
        """What every rank said last, by rank; None where the store does not answer: then it is never asked again."""
        store, answer = self._store, list[bytes]()
        if store is None:
            return None

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                answer.extend(store.multi_get([str(rank) for rank in range(self.size)]))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER)  # the store's own limit does not hold for a process that is stopped
        if len(answer) < self.size:
            self._store = None
            return None
        return [json.loads(said) for said in answer]


def _connected(run: str) -> Any:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        return None
    try:
        patience = datetime.timedelta(seconds=ANSWER)
        store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=patience)  # type: ignore[attr-defined]
        return dist.PrefixStore(f"kdscale-{run}", store)  # type: ignore[attr-defined]
    except RuntimeError:
        return None


_here: Pulse | None = None  # a process has one


def take(pulse: Pulse | None) -> None:
    """``pulse`` becomes the one that :func:`beat` moves."""
    global _here
    _here = pulse


def beat(doing: str, **place: Any) -> None:
    """Says that the process has come as far as this; outside of a run it says nothing."""
    if _here is not None:
        _here.beat(doing, **place)
