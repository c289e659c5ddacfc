"""Accelerate's trackers (TensorBoard and the rest), fed with the same lines as ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ...errors import RunError
from ..reporter import Silent


class Tracking(Silent):
    """Scalars as ``phase/loss/name``, ``phase/lr``, ``phase/top1/student`` over the global step."""

    def __init__(self, names: Sequence[str], folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._trackers = [_tracker(name, folder, run) for name in names]
        for tracker in self._trackers:
            tracker.start()

    def train(self, line: dict[str, Any]) -> None:
        head = line["phase"]
        values = {f"{head}/loss/{name}": value for name, value in line["losses"].items()}
        values |= {f"{head}/{name}": line[name] for name in ("loss", "lr", "images_per_second", "data_wait")}
        self._log(values, line["global_step"])

    def evaluation(self, line: dict[str, Any]) -> None:
        head = line["phase"]
        self._log({f"{head}/{field}/{line['name']}": line[field] for field in ("top1", "top5")}, line["global_step"])

    def _log(self, values: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _tracker(name: str, folder: Path, run: str) -> Any:
    known = {str(getattr(kind, "value", kind)): cls for kind, cls in LOGGER_TYPE_TO_CLASS.items()}
    if name not in known:
        raise RunError(f"machine.trackers: there is no tracker {name!r}; known: {', '.join(sorted(known))}")
    try:
        return known[name](run, folder) if known[name].requires_logging_directory else known[name](run)
    except ImportError as error:
        raise RunError(f"machine.trackers: {name} is not installed ({error}): pip install {name}") from None
