"""Where a run tells what it does: always ``metrics.jsonl`` and ``log.txt``; lines or a live display; trackers when asked.

The engine calls every reporter on rank 0 alone. What a reporter does never changes a run, and its failure never stops one.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    def say(self, text: str) -> None:
        """A sentence for the reader."""

    def phase(self, facts: dict[str, Any]) -> None:
        """A phase begins: name, number, phases, steps, step (where it continues), batch, at_most."""

    def advance(self, step: int, images: int) -> None:
        """One step is done (called every step; must cost nothing)."""

    def train(self, line: dict[str, Any]) -> None:
        """Means since the last line: phase, step, epoch, losses, lr, images_per_second, data_wait."""

    def evaluation(self, line: dict[str, Any]) -> None:
        """One answer on the evaluation split: phase, step, epoch, name, top1, top5, count, loss."""

    def close(self) -> None: ...


class Silent:
    def say(self, text: str) -> None: ...

    def phase(self, facts: dict[str, Any]) -> None: ...

    def advance(self, step: int, images: int) -> None: ...

    def train(self, line: dict[str, Any]) -> None: ...

    def evaluation(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Several(Silent):
    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = list(reporters)

    def _tell(self, call: Callable[[Reporter], None]) -> None:
        for reporter in list(self.reporters):
            try:
                call(reporter)
            except Exception as error:  # a tracker's failure must not cost a run
                self.reporters.remove(reporter)
                sys.stderr.write(f"{type(reporter).__name__} failed and is left out from here: {error}\n")

    def say(self, text: str) -> None:
        self._tell(lambda r: r.say(text))

    def phase(self, facts: dict[str, Any]) -> None:
        self._tell(lambda r: r.phase(facts))

    def advance(self, step: int, images: int) -> None:
        self._tell(lambda r: r.advance(step, images))

    def train(self, line: dict[str, Any]) -> None:
        self._tell(lambda r: r.train(line))

    def evaluation(self, line: dict[str, Any]) -> None:
        self._tell(lambda r: r.evaluation(line))

    def close(self) -> None:
        self._tell(lambda r: r.close())


class Journal(Silent):
    """``metrics.jsonl``, one object a line, and ``log.txt``."""

    def __init__(self, folder: Path) -> None:
        self._metrics = (folder / "metrics.jsonl").open("a")
        self._log = (folder / "log.txt").open("a")

    def say(self, text: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._log.flush()

    def phase(self, facts: dict[str, Any]) -> None:
        self.say(phase_text(facts))

    def train(self, line: dict[str, Any]) -> None:
        self._write({"event": "train", **line})
        self.say(train_text(line))

    def evaluation(self, line: dict[str, Any]) -> None:
        self._write({"event": "evaluation", **line})
        self.say(evaluation_text(line))

    def _write(self, plain: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(plain) + "\n")
        self._metrics.flush()

    def close(self) -> None:
        self._metrics.close()
        self._log.close()


def cut_back(path: Path, step: int) -> None:
    """Drops the lines of ``metrics.jsonl`` after global step ``step``, and a last line that a killed process left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["global_step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue
    from .files import write_text

    write_text(path, "".join(kept))


class Lines(Silent):
    """Plain lines, for files, batch systems and pipes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def say(self, text: str) -> None:
        self._write(text)

    def phase(self, facts: dict[str, Any]) -> None:
        self._write(phase_text(facts))

    def train(self, line: dict[str, Any]) -> None:
        self._write(train_text(line))

    def evaluation(self, line: dict[str, Any]) -> None:
        self._write(evaluation_text(line))


def phase_text(facts: dict[str, Any]) -> str:
    start = f", from step {facts['step']}" if facts["step"] else ""
    most = "at most " if facts.get("at_most") else ""
    return f"phase {facts['number']}/{facts['phases']} {facts['name']}: {most}{facts['steps']} steps of {facts['batch']} images{start}"


def train_text(line: dict[str, Any]) -> str:
    losses = " ".join(f"{name} {value:.4f}" for name, value in line["losses"].items())
    return (
        f"{line['phase']} step {line['step']}/{line['steps']} epoch {line['epoch']:.2f} loss {line['loss']:.4f} ({losses})"
        f" lr {line['lr']:.3g} {line['images_per_second']:.0f} images/s wait {100 * line['data_wait']:.0f}% ETA {duration(line['eta'])}"
    )


def evaluation_text(line: dict[str, Any]) -> str:
    return (
        f"{line['phase']} step {line['step']} epoch {line['epoch']:.2f} {line['name']}: top1 {100 * line['top1']:.2f}"
        f" top5 {100 * line['top5']:.2f} of {line['count']} images"
    )


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
