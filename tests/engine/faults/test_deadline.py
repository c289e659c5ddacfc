"""The end of a job's time, as Slurm tells it."""

import time

import pytest

from kdscale.engine.faults.deadline import Deadline
from kdscale.engine.faults.signals import Signals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_a_job_is_left_in_time_for_a_step_and_a_save(clock: list[float]) -> None:
    deadline = Deadline({"SLURM_JOB_END_TIME": "4600"})
    deadline.step, deadline.save = 5.0, 20.0
    clock[0] = 4600 - 60 - 50 - 1
    assert not deadline.near
    clock[0] += 2
    assert deadline.near


def test_a_short_job_trains_for_three_quarters_of_its_time(clock: list[float]) -> None:
    deadline = Deadline({"SLURM_JOB_END_TIME": "1060"})
    clock[0] = 1044.0
    assert not deadline.near
    clock[0] = 1046.0
    assert deadline.near


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_END_TIME": "Unknown"}, {"SLURM_JOB_END_TIME": "0"}, {"SLURM_JOB_END_TIME": "999"}]
)
def test_without_a_time_to_come_there_is_no_end(clock: list[float], environment: dict[str, str]) -> None:
    deadline = Deadline(environment)
    clock[0] = 1e12
    assert not deadline.near


def test_it_asks_for_a_stop_as_a_signal_does(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1100")
    signals = Signals()
    assert signals.asked is None
    clock[0] = 1099.0
    assert signals.asked == "the job's time limit"
