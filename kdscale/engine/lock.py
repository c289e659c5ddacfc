"""One process group a run folder. A lock file with host, process and heartbeat: file locks are not relied on over NFS."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import RunError

BEAT = 30.0  # seconds
STALE = 300.0


class Lock:
    """Held from :meth:`take` to :meth:`release`; a holder that died is replaced. Rank 0 alone takes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Raises RunError naming the holder when another live process has the folder."""
        for _ in range(3):
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._remove_dead()
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(_me(), file)
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
            return
        raise RunError(f"{self.path.parent} is being fought over by several runs: stop all but one")

    def release(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self.path.unlink(missing_ok=True)

    def _remove_dead(self) -> None:
        try:
            holder = json.loads(self.path.read_text() or "{}")
            age = time.time() - self.path.stat().st_mtime
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.1)
            return
        if _alive(holder, age):
            raise RunError(
                f"{self.path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}: stop it, or choose another --out"
            )
        aside = self.path.with_name(f"{self.path.name}.dead-{os.getpid()}")
        try:
            self.path.rename(aside)
            aside.unlink()
        except FileNotFoundError:
            return

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def _alive(holder: dict[str, Any], age: float) -> bool:
    if not holder:
        return age < 5.0  # being written
    if holder.get("host") != socket.gethostname():
        return age < STALE
    return _started(int(holder["pid"])) == holder.get("started")


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks: tells a process from a later one with its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
