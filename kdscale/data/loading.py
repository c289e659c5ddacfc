"""Worker processes: each reads its share of every micro-batch, and the shares are laid together by position.

Which worker reads a sample depends on its position alone, so the tensors are equal for any number of workers; with none,
the same code reads in place. Errors of a worker come back as one sentence; a worker that dies is one too, never a hang.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kdscale.errors import DataError

from .order import Integers
from .processes import without_main
from .reader import Reader, Rows
from .table import Failure, Part

PRELOAD = ["kdscale.data.forkserver", "torch", "torch.utils.data", "torchvision.io", "kdscale.data.reader"]
LOOK_UP_AT_ONCE = 512  # positions: looking up costs a millisecond a call
MOST_WORKERS = 16
SMALLEST_SHARE = 4  # samples of a micro-batch: a message costs about a third of a millisecond
SHARED_MEMORY = Path("/dev/shm")
NEWS_OF_A_DEATH = 0.5  # seconds that the fork server may take to pass it on


class Schedule(Protocol):
    """The micro-batches of one rank: positions at a fixed distance ``stride``."""

    @property
    def stride(self) -> int: ...

    def __len__(self) -> int: ...

    def positions(self, number: int) -> Integers: ...


def worker_count(workers: int | Literal["auto"], local_ranks: int, micro_batch: int) -> int:
    """Processes for one rank. ``auto``: the usable cores of this rank less one for the trainer, none where it has one."""
    if workers == "auto":
        cores = usable_cores() // local_ranks
        return worker_count(min(MOST_WORKERS, cores - 1) if cores > 1 else 0, local_ranks, micro_batch)
    return min(workers, max(1, micro_batch // SMALLEST_SHARE))


def usable_cores() -> int:
    """Cores that this process may use: its affinity, as Slurm sets it, its control group's quota, and KDSCALE_CORES, by which a
    sweep deals them to runs side by side."""
    given = os.environ.get("KDSCALE_CORES", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


class Shares(IterableDataset[Part | Failure]):
    """What one worker reads, in order: its share of each micro-batch of the schedule."""

    def __init__(self, schedule: Schedule, reader: Reader, rank: int) -> None:
        self.schedule, self.reader, self.rank = schedule, reader, rank

    def __iter__(self) -> Iterator[Part | Failure]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        try:
            for part in self._parts(worker, workers):
                yield part if info is None else _shared(part)
        except DataError as error:
            yield Failure(str(error))
        except Exception as error:
            yield Failure(f"data worker {worker} of rank {self.rank} failed: {type(error).__name__}: {error}")

    def _parts(self, worker: int, workers: int) -> Iterator[Part]:
        waiting: Rows | None = None
        for rows in self._rows(worker, workers):
            if waiting is not None:
                yield self.reader.read(waiting, rows)
            waiting = rows
        if waiting is not None:
            yield self.reader.read(waiting)

    def _rows(self, worker: int, workers: int) -> Iterator[Rows]:
        """Looks positions up for several micro-batches at once, and hands them out one at a time."""
        number = 0
        while number < len(self.schedule):
            shares: list[Integers] = []
            while number < len(self.schedule) and sum(map(len, shares)) < LOOK_UP_AT_ONCE:
                positions = self.schedule.positions(number)
                shares.append(positions[positions // self.schedule.stride % workers == worker])
                number += 1
            rows, start = self.reader.look_up(np.concatenate(shares)), 0
            for share in shares:
                yield rows.of(start, start + len(share))
                start += len(share)


class Loading:
    """The micro-batches of a schedule on the host; iterate once, then ``close``."""

    def __init__(
        self, schedule: Schedule, reader: Reader, workers: int, prefetch: int, rank: int, pin: bool, views: int = 1
    ) -> None:
        """``pin``: into page-locked memory, from which copies to a GPU run beside its work. ``views``: rows a position."""
        self.schedule, self.reader, self.workers, self.rank, self.pin = schedule, reader, workers, rank, pin
        self.views = views
        self._shares = Shares(schedule, reader, rank)
        self._iterator: Any = None
        self._finalize: Finalize | None = None
        if workers:
            self._start(prefetch)

    def _start(self, prefetch: int) -> None:
        micro_batch = len(self.schedule.positions(0)) * self.views
        image = self.reader.size**2 * 3
        _check_shared_memory(self.workers, prefetch, (prefetch + 1) * micro_batch * image)
        _check_file_size(-(-micro_batch // self.workers) * image)
        start_server()
        loader = DataLoader(
            self._shares,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=prefetch,
            multiprocessing_context="forkserver",
            worker_init_fn=_begin_worker,
            # Its seed is drawn from the global generator unless one is given, and the trainer's draws would change.
            generator=torch.Generator(),
        )
        with without_main():
            self._iterator = iter(loader)
        self._finalize = Finalize(self, _stop, (self._iterator,), exitpriority=100)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, tuple[str, ...]]]:
        """(images uint8 [b,S,S,3], table [b,columns], notes) of each micro-batch, rows in order of position."""
        source = iter(self._shares) if self._iterator is None else self._iterator
        for number in range(len(self.schedule)):
            parts = [self._next(source) for _ in range(self.workers or 1)]
            notes = tuple(note for part in parts for note in part.notes)
            first = int(self.schedule.positions(number)[0]) // self.schedule.stride
            slots = [(worker - first) % len(parts) for worker in range(len(parts))]
            yield self._laid([part.images for part in parts], slots), self._laid([part.table for part in parts], slots), notes

    def _laid(self, parts: list[Tensor], slots: list[int]) -> Tensor:
        return parts[0] if len(parts) == 1 and not self.pin else laid(parts, slots, self.pin, self.views)

    def _next(self, source: Iterator[Part | Failure]) -> Part:
        try:
            part = next(source, None)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it handed a tensor over
            raise DataError(self._death() or f"reading data failed on rank {self.rank}: {error!r}") from None
        if part is None:
            raise DataError(f"the data workers of rank {self.rank} ended before their last batch: see what they said above")
        if isinstance(part, Failure):
            raise DataError(part.message)
        return part

    def _death(self) -> str | None:
        for worker, process in enumerate(self._iterator._workers if self._iterator is not None else ()):
            process.join(NEWS_OF_A_DEATH)
            if not process.is_alive():
                code = process.exitcode
                reason = f"signal {-code}; 9 = probably out of memory" if code and code < 0 else f"exit code {code}"
                return f"data worker {worker} of rank {self.rank} died ({reason}): give fewer workers or a smaller prefetch"
        return None

    def close(self) -> None:
        """Ends the workers; harmless when called again."""
        if self._finalize is not None:
            self._finalize()
            self._finalize, self._iterator = None, None


def start_server() -> None:
    """Starts the fork server if it is not running; returns at once, while it imports torch beside the caller's work."""
    multiprocessing.forkserver.set_forkserver_preload(PRELOAD)
    with without_main():
        multiprocessing.forkserver.ensure_running()


def laid(parts: list[Tensor], slots: list[int], pin: bool, views: int = 1) -> Tensor:
    """Interleaves the workers' positions, of ``views`` rows each: part i takes positions ``slots[i]``, ``slots[i] + len(parts)``,
    ... The only host copy."""
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype, pin_memory=pin)
    by_position = whole.view(-1, views, *whole.shape[1:])
    for part, slot in zip(parts, slots):
        by_position[slot :: len(parts)] = part.view(-1, views, *part.shape[1:])
    return whole


def _check_shared_memory(workers: int, prefetch: int, needed: int) -> None:
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise DataError(
            f"{SHARED_MEMORY} has {free >> 20} MB free, {(needed >> 20) + 1} MB needed for {workers} workers x {prefetch} batches: "
            "give docker --shm-size, or a smaller prefetch"
        )


def _check_file_size(needed: int) -> None:
    """Shared memory is a file, and the shell's limit on files holds for it too."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if 0 <= allowed < needed:
        raise DataError(
            f"files may have {allowed >> 10} KB here (ulimit -f), and a worker's share of a batch takes {(needed >> 10) + 1} KB: "
            "raise the limit, or set data.workers=0"
        )


def _shared(part: Part) -> Part:
    """Moved to shared memory where an error is ours to tell: the queue's own thread would lose it, and the part."""
    part.images.share_memory_()  # type: ignore[no-untyped-call]
    part.table.share_memory_()  # type: ignore[no-untyped-call]
    return part


def _begin_worker(_: int) -> None:
    """Leaves signals to the trainer (torch's worker loop has just set its own answer to SIGTERM), and ends with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    """torch's watchdog looks at the fork server, which lives as long as its workers do: a killed trainer would leave both."""
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


def _stop(iterator: Any) -> None:
    """Asks the workers to end, waits, and kills what is left: they do not heed SIGTERM."""
    killer = threading.Timer(3.0, _kill, (iterator,))
    killer.daemon = True
    killer.start()
    iterator._shutdown_workers()
    killer.cancel()
    _kill(iterator)


def _kill(iterator: Any) -> None:
    for process in iterator._workers:
        if process.is_alive():
            process.kill()
