"""Runs that start at once: one process imports everything, and each rank of a run is a fork of it, real to kill and to signal.

Imports take most of a small run's time. The ranks find one another as those of ``srun`` without a launcher do: rank 0 holds
the store. ``injury``: 'module:function', called in every rank before the command.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 180.0  # seconds that a test waits for anything


class Run:
    """The ranks of one start, as the process that forked them sees them."""

    def __init__(self, stable: Stable, pids: list[int], log: Path) -> None:
        self.stable, self.pids, self.log = stable, pids, log

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def codes(self) -> list[int | None]:
        """Of each rank: None while it lives, minus the signal that killed it."""
        return list(self.stable.ask(op="codes", pids=self.pids)["codes"])

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
    """The process that forks."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KDSCALE_PROGRESS": "lines", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.stable"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._number = 0

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def start(self, *words: str | Path, out: Path, ranks: int = 1, injury: str = "", **variables: str) -> Run:
        """``kdscale train words --out out`` on ``ranks`` processes; each of them is a process group of its own."""
        self._number += 1
        log = out.parent / f"{out.name}-{self._number}.said"
        command = ["kdscale", "train", *map(str, words), "--out", str(out)]
        found = self.ask(op="start", command=command, ranks=ranks, log=str(log), injury=injury, variables=variables)
        return Run(self, found["pids"], log)

    def train(self, *words: str | Path, out: Path, ranks: int = 1, expect: int | None = 0, injury: str = "") -> Run:
        """A run to its end, and how it ended."""
        run = self.start(*words, out=out, ranks=ranks, injury=injury)
        codes = run.wait()
        assert expect is None or codes == [expect] * ranks, f"{codes} {run.said[-4000:]}"
        return run

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def stable() -> Iterator[Stable]:
    made = Stable()
    try:
        yield made
    finally:
        made.close()


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def serve() -> None:
    import timm  # noqa: F401

    import kdscale.cli.main
    import kdscale.engine.run
    import kdscale.methods  # noqa: F401

    gc.collect()
    gc.freeze()  # no fork looks through all of this again
    for line in sys.stdin:
        question = json.loads(line)
        answer = begun(question) if question["op"] == "start" else {"codes": [code_of(pid) for pid in question["pids"]]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


ended: dict[int, int] = {}


def code_of(pid: int) -> int | None:
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended.get(pid)


def begun(question: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pids = []
    for rank in range(question["ranks"]):
        pid = os.fork()
        if pid == 0:
            world = {"WORLD_SIZE": str(question["ranks"]), "LOCAL_WORLD_SIZE": str(question["ranks"])}
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            become(question, world | place if question["ranks"] > 1 else {})
        pids.append(pid)
    return {"pids": pids}


def become(question: dict[str, Any], place: dict[str, str]) -> None:
    """This fork is a rank from here on, and ends as a command line ends."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.environ.update(place | question["variables"])
        log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(file, number)
        sys.argv = question["command"]
        if question["injury"]:
            module, _, name = question["injury"].partition(":")
            getattr(importlib.import_module(module), name)()
        from kdscale.cli.main import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
