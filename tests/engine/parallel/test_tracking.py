"""Accelerate's TensorBoard tracker gets the same numbers as metrics.jsonl, under readable names."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdscale.engine.parallel.tracking import Tracking
from kdscale.errors import RunError

TRAIN = {
    "phase": "student",
    "global_step": 7,
    "loss": 0.75,
    "losses": {"ce": 0.5, "kd": 0.25},
    "lr": 0.125,
    "images_per_second": 100.0,
    "data_wait": 0.0,
}
EVALUATION = {"phase": "student", "global_step": 7, "name": "ema", "top1": 0.5, "top5": 1.0}


def test_scalars_arrive_by_name_and_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = Tracking(("tensorboard",), tmp_path, "run")
    tracking.train(TRAIN)
    tracking.evaluation(EVALUATION)
    tracking.close()
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    expected = {"student/loss/ce": 0.5, "student/loss": 0.75, "student/lr": 0.125, "student/top1/ema": 0.5}
    for name, value in expected.items():
        (scalar,) = events.Scalars(name)
        assert (scalar.step, scalar.value) == (7, value)


def test_a_tracker_that_is_not_known_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no tracker 'tensorbord'; known: .*tensorboard"):
        Tracking(("tensorbord",), tmp_path, "run")
