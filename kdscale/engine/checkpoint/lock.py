"""One process group a run folder. A lock file with host, process and heartbeat: file locks are not relied on over NFS.

A lock appears whole (a hard link to a finished file), and carries a random token: nobody touches, beats or removes a file
that does not hold the token it expects. A dead holder's lock is removed behind a gate, a second such lock: only one process
at a time looks once more and removes, so a lock that a rival has just taken is never removed for the dead one before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from ...errors import RunError

BEAT = 30.0  # seconds
STALE = 300.0
UNREADABLE = 5.0  # after which a lock that cannot be read (a power cut leaves zeros) has no holder
ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
    "PREEMPTED",
    "PENDING",
)
PATIENCE = 15.0  # for rivals that remove the same dead lock


class Lock:
    """Held from :meth:`take` to :meth:`release`; a holder that died is replaced. Rank 0 alone takes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = b""  # of the file while it is held
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Raises RunError naming the holder when another live process has the folder."""
        self._occupy()
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Removes the lock if it is still this one's. One that cannot be removed names a process that is soon gone."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._vacate()

    def _occupy(self) -> None:
        token = secrets.token_hex(8)
        content = json.dumps(_me() | {"token": token}).encode()
        draft = self._beside(token)
        patience = time.monotonic() + PATIENCE
        try:
            draft.write_bytes(content)
            while not _place(draft, self.path, content):
                self._replace_dead(draft)
                if time.monotonic() > patience:
                    raise RunError(f"{self.path.parent} is being fought over by several runs: stop all but one")
        finally:
            draft.unlink(missing_ok=True)
        self._content = content

    def _vacate(self) -> None:
        with contextlib.suppress(OSError):
            if self.path.read_bytes() == self._content:
                self.path.unlink()

    def _replace_dead(self, draft: Path) -> None:
        """Removes the lock that lies there if its holder is dead; raises RunError if it lives."""
        try:
            found = self.path.read_bytes()
            age = _now(draft) - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        holder = _read(found)
        if holder is None and abs(age) < UNREADABLE:  # perhaps on its way through a file system without hard links
            time.sleep(0.05)
        elif holder is not None and _alive(holder, age):
            raise RunError(
                f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}{_of_job(holder)}: stop it, or choose"
                " another --out"
            )
        else:
            self._remove(found)

    def _remove(self, dead: bytes) -> None:
        gate = Lock(self._beside("gate"))
        try:
            gate._occupy()
        except RunError:  # a rival is at it
            time.sleep(0.01)
            return
        try:
            if self.path.read_bytes() == dead:
                self.path.unlink()
        except FileNotFoundError:
            pass
        finally:
            gate._vacate()

    def _beside(self, word: str) -> Path:
        return self.path.with_name(f".{self.path.name.lstrip('.')}-{word}")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):  # a file system that is away for a while
                if self.path.read_bytes() == self._content:
                    os.utime(self.path)


def _place(draft: Path, path: Path, content: bytes) -> bool:
    """Whether ``path`` could be made: whole and at once where the file system has hard links."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return draft.stat().st_nlink > 1  # NFS sends a lost answer's question again, and then it is our own that exists
    except OSError:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return True


def _now(draft: Path) -> float:
    """Seconds by the clock of the file system, which stamps the beats too: a server's clock may not be ours."""
    os.utime(draft)
    return draft.stat().st_mtime


def _read(content: bytes) -> dict[str, Any] | None:
    try:
        holder = json.loads(content)
    except ValueError:
        return None
    shape = {"pid": int, "host": str, "restart": int}
    fits = isinstance(holder, dict) and all(isinstance(({"restart": 0} | holder).get(k), kind) for k, kind in shape.items())
    return holder if fits else None


def _alive(holder: dict[str, Any], age: float) -> bool:
    me = _me()
    if holder["host"] == me["host"] and holder.get("started") is not None:
        return bool(started(holder["pid"]) == holder["started"])
    if me["job"] is not None and holder.get("job") == me["job"] and holder.get("restart", 0) < me["restart"]:
        return False  # Slurm starts a job again only after its processes have ended
    if abs(age) > 2 * BEAT and holder.get("job") not in (None, me["job"]) and _job_ended(str(holder["job"])):
        return False
    return abs(age) < STALE


def _job_ended(job: str) -> bool:
    """Whether Slurm says so. Without an answer it may live."""
    words = ["scontrol", "--oneliner", "show", "job", job]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    states = re.findall(r"\bJobState=(\w+)", told)
    return bool(states) and all(state in ENDED for state in states)


def _me() -> dict[str, Any]:
    pid, job = os.getpid(), slurm()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": started(pid),
        "job": job.get("job"),
        "restart": job.get("restarts", 0),
    }


def _of_job(holder: dict[str, Any]) -> str:
    return f" (Slurm job {holder['job']})" if holder.get("job") else ""


def slurm() -> dict[str, Any]:
    """The job, its restarts so far and its nodes, in a Slurm job; nothing elsewhere."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "")
    if job is None:
        return {}
    count = int(restarts) if restarts.isdecimal() else 0  # not set before the first restart
    return {"job": job, "restarts": count, "nodes": os.environ.get("SLURM_JOB_NODELIST")}


def started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks: tells a process from a later one with its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
