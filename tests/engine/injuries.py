"""What is done to one rank of a real run: ``INJURED`` says to which, ``AT`` at which step (or save) of the phase."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.engine import evaluation
from kdscale.engine.checkpoint import saving
from kdscale.engine.faults import watchdog
from kdscale.engine.stage import Stage
from kdscale.types import Batch, Progress


def meant() -> bool:
    return os.environ.get("RANK", "0") == os.environ.get("INJURED", "0")


def at_step(what: Callable[[], None]) -> None:
    """``what`` happens in the injured rank when it computes step ``AT``."""
    before = Stage.begin_step

    def instead(stage: Stage, progress: Progress, history: list[float]) -> float:
        if meant() and progress.step == int(os.environ["AT"]):
            what()
        return before(stage, progress, history)

    Stage.begin_step = instead  # type: ignore[method-assign]


def impatient() -> None:
    """Silence is told after two seconds."""
    watchdog.BEAT, watchdog.SILENT = 0.2, 2.0


def mistake() -> None:
    def raises() -> None:
        raise ValueError("a mistake that one rank alone makes")

    at_step(raises)


def memory() -> None:
    """The system's limit on memory, and an allocation that passes it."""

    def fill() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        torch.ones(1 << 28)

    at_step(fill)


def hang() -> None:
    at_step(lambda: time.sleep(1000))


def not_a_number() -> None:
    before = Stage.teach

    def instead(stage: Stage, batch: Batch, progress: Progress) -> Any:
        if meant() and progress.step == int(os.environ["AT"]):
            batch.images.fill_(float("nan"))
        return before(stage, batch, progress)

    Stage.teach = instead  # type: ignore[method-assign]


def killed_in_save() -> None:
    """The process dies between two files of save ``AT``."""
    before = saving.write_json

    def instead(path: Path, plain: Any) -> None:
        if path.parent.name.startswith(f".tmp-{saving.name_of(int(os.environ['AT']))}"):
            os.kill(os.getpid(), signal.SIGKILL)
        before(path, plain)

    saving.write_json = instead


def slow_save() -> None:
    """Saves take a while, and say when they begin."""
    before = saving.write_tensors

    def instead(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        os.write(1, f"writing {path.name}\n".encode())
        time.sleep(0.3)
        before(path, tensors, metadata)

    saving.write_tensors = instead  # type: ignore[assignment]


def slow_evaluation() -> None:
    """A batch of an evaluation takes a while, and says that it begins."""
    before = evaluation._next

    def instead(source: Any) -> Any:
        os.write(1, b"a batch of an evaluation\n")
        time.sleep(0.3)
        return before(source)

    evaluation._next = instead
