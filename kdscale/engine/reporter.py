"""Where a run tells what it does: always ``metrics.jsonl`` and ``log.txt``; lines or a live display; trackers when asked.

The engine calls every reporter on rank 0 alone. What a reporter does never changes a run, and its failure never stops one.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
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
        self._files = {name: (folder / name).open("ab", buffering=0) for name in ("metrics.jsonl", "log.txt")}
        self._held = dict.fromkeys(self._files, b"")  # what a full disk refused; it goes out before the next line

    def say(self, text: str) -> None:
        self._write("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {text}\n")

    def phase(self, facts: dict[str, Any]) -> None:
        self.say(phase_text(facts))

    def train(self, line: dict[str, Any]) -> None:
        self._metric({"event": "train", **line})
        self.say(train_text(line))

    def evaluation(self, line: dict[str, Any]) -> None:
        self._metric({"event": "evaluation", **line})
        self.say(evaluation_text(line))

    def _metric(self, plain: dict[str, Any]) -> None:
        self._write("metrics.jsonl", json.dumps(strict(plain), allow_nan=False) + "\n")

    def _write(self, name: str, line: str) -> None:
        self._held[name] += line.encode()
        with suppress(OSError):
            while self._held[name]:
                self._held[name] = self._held[name][self._files[name].write(self._held[name]) :]

    def close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):
                file.close()


def strict(plain: Any) -> Any:
    """The same with ``null`` for numbers that JSON has not."""
    if isinstance(plain, dict):
        return {name: strict(value) for name, value in plain.items()}
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def cut_back(path: Path, step: int, phases: Sequence[str] | None = None, owed: bool = False) -> None:
    """Drops the lines of ``metrics.jsonl`` after global step ``step``, those of other phases than ``phases`` (a later phase tells
    of its teachers before its first step), and a last line that a killed process left half-written. ``owed``: the evaluation
    after that step is still to come."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            told = json.loads(line)
            late = told["global_step"] > step or (owed and told["global_step"] == step and told["event"] == "evaluation")
            if not late and (phases is None or told["phase"] in phases):
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue
    from .checkpoint.files import write_text

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
        f" lr {line['lr']:.3g} {line['images_per_second']:.0f} images/s wait {100 * line['data_wait']:.0f}% ETA {'at most ' if line.get('at_most') else ''}{duration(line['eta'])}"
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
