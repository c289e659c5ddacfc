"""The launcher's store, asked so that nobody waits for it: it may be slow, stopped, or on a machine that is gone.

A call that is not answered in time leaves its connection to itself, since the store's own time limit does not hold for a process
that is stopped; the next call makes another connection.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
ANSWER = 5.0  # seconds


class Contact:
    """``run``: before every key, so that a start reads nothing of another."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._store: Any = None

    def tell(self, key: str, word: str) -> None:
        """Whether it came there nobody knows: the store does not answer to it."""
        self._answer(lambda store: (store.set(key, word),))

    def ask(self, keys: Sequence[str]) -> list[bytes] | None:
        """What was told under each key; None without an answer."""
        return self._answer(lambda store: list(store.multi_get(list(keys))))

    def _answer(self, work: Callable[[Any], T]) -> T | None:
        store, got = self._store, list[tuple[Any, T]]()

        def call() -> None:
            with contextlib.suppress(RuntimeError):
                there = store or _connected(self.run)
                if there is not None:
                    got.append((there, work(there)))

        calling = threading.Thread(target=call, name="contact", daemon=True)
        calling.start()
        calling.join(ANSWER)
        self._store, answer = got[0] if got else (None, None)
        return answer


def _connected(run: str) -> Any:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        return None
    patience = datetime.timedelta(seconds=ANSWER)
    store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=patience)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"kdscale-{run}", store)  # type: ignore[attr-defined]
