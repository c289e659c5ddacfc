"""Processes that start at once: one process a pytest worker imports everything, and ``python -m`` is a fork of it.

Imports take most of a small run's time. A fork is real to kill and to signal, has its own environment, folder and files, runs
its module as ``__main__`` and ends as an interpreter ends; but its hash seed, and whatever a library read from the environment
while it was imported, are those of the process that forks. Ranks find one another as those of ``srun`` without a launcher do:
rank 0 holds the store. ``injury``: 'module:function', called in every rank before the module runs.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.01  # seconds between two looks at a process that is waited for


class Origin:
    """The process that forks, as its pytest worker sees it; it ends with the worker, and with it all that it has forked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._lock = threading.Lock()
        atexit.register(self._process.communicate)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return dict(json.loads(self._process.stdout.readline()))

    def begin(
        self,
        module: str,
        words: list[str],
        environment: dict[str, str],
        *files: Path,
        ranks: int = 1,
        groups: bool = False,
        injury: str = "",
    ) -> list[int]:
        """The processes of ``python -m module words``, one a rank. ``files``: its output and its errors, or one for both;
        ``groups``: each is the head of a process group."""
        said = {"words": words, "environment": environment, "files": [str(file) for file in files], "cwd": os.getcwd()}
        return list(self.ask(op="begin", module=module, ranks=ranks, groups=groups, injury=injury, **said)["pids"])

    def codes(self, pids: list[int]) -> list[int | None]:
        """Of each process: None while it lives, minus the signal that killed it."""
        return list(self.ask(op="codes", pids=pids)["codes"])


@functools.cache
def origin() -> Origin:
    return Origin()


class Forked:
    """What ``subprocess.Popen`` gives for the same words, output and errors in one stream; of several ranks, all of them."""

    def __init__(
        self,
        module: str,
        *words: str | Path,
        environment: dict[str, str],
        ranks: int = 1,
        files: tuple[Path, ...] = (),
        injury: str = "",
    ) -> None:
        self.args = [module, *map(str, words)]
        self.returncode: int | None = None
        self.stdout: TextIO | None = None
        begin = functools.partial(
            origin().begin, module, self.args[1:], environment, ranks=ranks, groups=ranks > 1, injury=injury
        )
        if files:
            self.pids = begin(*files)
            return
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder, "out")
            os.mkfifo(pipe)
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # or it would wait for the writer that is still to be forked
            self.pids = begin(pipe)
        os.set_blocking(reader, True)
        self.stdout = os.fdopen(reader)

    @property
    def pid(self) -> int:
        return self.pids[0]

    def poll(self) -> int | None:
        codes = origin().codes(self.pids)
        if None not in codes:
            self.returncode = next((code for code in codes if code), 0)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(PAUSE)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        assert self.stdout is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda stream: said.append(stream.read()), args=(self.stdout,), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait()
        return said[0], None

    def send_signal(self, number: int) -> None:
        """To every rank that lives, as a launcher hands it on."""
        for pid, code in zip(self.pids, origin().codes(self.pids), strict=True):
            if code is None:
                os.kill(pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def call(
    module: str, *words: str | Path, environment: dict[str, str], ranks: int = 1, timeout: float = 300, injury: str = ""
) -> subprocess.CompletedProcess[str]:
    """``python -m module words`` to its end; of several ranks, the first code that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = Forked(module, *words, environment=environment, ranks=ranks, files=(out, err), injury=injury)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as late:
            process.kill()
            raise AssertionError(out.read_text()[-3000:] + err.read_text()[-5000:]) from late
        return subprocess.CompletedProcess(process.args, code, out.read_text(), err.read_text())


# In the process that forks

ended: dict[int, int] = {}
begun: list[int] = []


def serve() -> None:
    import timm  # noqa: F401

    import kdscale.cli.main
    import kdscale.engine.run
    import kdscale.methods  # noqa: F401

    threads = Path("/proc/self/task")
    assert not threads.exists() or len(list(threads.iterdir())) == 1, "a fork has none of the threads that an import began"
    gc.collect()
    gc.freeze()  # no fork looks through all of this again
    while line := sys.stdin.readline():
        question = json.loads(line)
        answer = begin(question) if question["op"] == "begin" else {"codes": [code_of(pid) for pid in question["pids"]]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in begun:
        if code_of(pid) is None:
            os.kill(pid, signal.SIGKILL)
    os._exit(0)


def code_of(pid: int) -> int | None:
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended.get(pid)


def begin(question: dict[str, Any]) -> dict[str, Any]:
    """Answers in the process that forks; in a fork it never returns."""
    files = [os.open(os.devnull, os.O_RDONLY)]
    for path in question["files"]:
        files.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
    ranks, port, pids = question["ranks"], free_port(), []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            place = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            end(functools.partial(become, question, files, place))
        pids.append(pid)
    for file in files:
        os.close(file)
    begun.extend(pids)
    return {"pids": pids}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def become(question: dict[str, Any], files: list[int], place: dict[str, str]) -> None:
    """This fork is ``python -m`` from here on."""
    if question["groups"]:
        os.setpgid(0, 0)
    for number in range(3):
        os.dup2(files[min(number, len(files) - 1)], number)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(question["environment"] | place)
    os.chdir(question["cwd"])
    sys.path[0] = question["cwd"]
    sys.argv = [question["module"], *question["words"]]
    sys.stdout.reconfigure(line_buffering="PYTHONUNBUFFERED" in os.environ)  # type: ignore[union-attr]
    if question["injury"]:
        module, _, name = question["injury"].partition(":")
        getattr(importlib.import_module(module), name)()
    runpy.run_module(question["module"], run_name="__main__", alter_sys=True)


def end(program: Callable[[], None]) -> NoReturn:
    """As an interpreter ends, but that it takes no module apart: with all that was imported here this would take seconds."""
    code: Any = 1
    try:
        program()
        code = 0
    except SystemExit as left:
        code = left.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
