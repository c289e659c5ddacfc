"""Child processes that need nothing of the program that starts them.

Children begin anew instead of being forked (a fork after the start of CUDA or of threads is unsafe), and such a child
normally runs the parent's main module again. Ours never need it, so it is hidden while they start: no unguarded script
starts itself anew, and no child imports a command line.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started in this block do not import the parent's main module, and are deaf to SIGUSR1.

    A scheduler sends it to every process of a job, and it would kill them; what is blocked stays so in all descendants.
    """
    main, deaf_to = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, deaf_to)


@contextmanager
def pool(jobs: int) -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    """A function that runs picklable calls in ``jobs`` processes, or here for one job. An error cancels what waits."""
    if jobs <= 1:
        yield _run_here
        return
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent)

    def submit(task: Callable[[], T]) -> Future[T]:
        with without_main():
            return executor.submit(task)

    try:
        yield submit
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _run_here(task: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(task())
    except Exception as error:
        future.set_exception(error)
    return future


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
