"""``kdscale train`` by forks that share a log, each rank of them to be signalled and to be injured before it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests import forks

from . import small

ROOT = forks.ROOT
LIMIT = 180.0  # seconds that a test waits for anything


class Run:
    """The ranks of one start, as the process that forked them sees them."""

    def __init__(self, pids: list[int], log: Path) -> None:
        self.pids, self.log = pids, log

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def codes(self) -> list[int | None]:
        """Of each rank: None while it lives, minus the signal that killed it."""
        return forks.origin().codes(self.pids)

    def wait(self) -> list[int]:
        self.until(lambda: None not in self.codes())
        return [int(code or 0) for code in self.codes()]

    def until(self, what: Callable[[], Any]) -> None:
        end = time.monotonic() + LIMIT
        while not what():
            assert time.monotonic() < end, self.said[-4000:]
            time.sleep(0.02)

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.said or None not in self.codes())
        assert text in self.said, self.said[-4000:]

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """To some ranks; to all where none is named."""
        for rank in ranks or range(len(self.pids)):
            with suppress(ProcessLookupError):  # it came to its end meanwhile
                os.kill(self.pids[rank], number)


class Stable:
    """Starts runs."""

    def __init__(self) -> None:
        self._started: list[Run] = []

    def start(self, *words: str | Path, out: Path, ranks: int = 1, injury: str = "", **variables: str) -> Run:
        """``kdscale train words --out out`` on ``ranks`` processes; each of them is a process group of its own."""
        log = out.parent / f"{out.name}-{len(self._started) + 1}.said"
        given = small.environment() | {"PYTHONUNBUFFERED": "1"} | variables
        command = ["train", *map(str, words), "--out", str(out)]
        run = Run(forks.origin().begin("kdscale", command, given, log, ranks=ranks, groups=True, injury=injury), log)
        self._started.append(run)
        return run

    def train(self, *words: str | Path, out: Path, ranks: int = 1, expect: int | None = 0, injury: str = "") -> Run:
        """A run to its end, and how it ended."""
        run = self.start(*words, out=out, ranks=ranks, injury=injury)
        codes = run.wait()
        assert expect is None or codes == [expect] * ranks, f"{codes} {run.said[-4000:]}"
        return run


@contextmanager
def stable() -> Iterator[Stable]:
    """What it starts ends with it."""
    made = Stable()
    try:
        yield made
    finally:
        for run in made._started:
            run.send(signal.SIGKILL, *(rank for rank, code in enumerate(run.codes()) if code is None))


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
