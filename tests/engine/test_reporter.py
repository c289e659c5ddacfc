"""What a run writes about itself, read back; and that no reporter can cost a run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.engine.reporter import Journal, Lines, Several, Silent, cut_back, duration

TRAIN: dict[str, Any] = {
    "phase": "student", "step": 7, "global_step": 19, "epoch": 0.5, "steps": 40, "lr": 1e-3, "eta": 61.0,
    "loss": 0.1 + 0.2, "losses": {"ce": 0.1, "kd": 0.2}, "images_per_second": 123.4, "data_wait": 0.25,
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "phase": "student", "step": 7, "global_step": 19, "epoch": 0.5,
    "name": "shadow", "top1": 1 / 3, "top5": 2 / 3, "loss": 1.25, "count": 50,
}  # fmt: skip
PHASE = {"name": "student", "number": 2, "phases": 2, "steps": 40, "step": 0, "batch": 24, "images": 960}


def journal(folder: Path, steps: int, first: int = 1) -> None:
    """A run's journal from global step ``first`` to ``steps``, with an evaluation every third step."""
    written = Journal(folder)
    for step in range(first, steps + 1):
        written.train(TRAIN | {"global_step": step})
        if step % 3 == 0:
            written.evaluation(EVALUATION | {"global_step": step})
    written.close()


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_line_is_one_object_and_no_digit_is_lost(tmp_path: Path) -> None:
    written = Journal(tmp_path)
    written.train(TRAIN)
    written.evaluation(EVALUATION)
    assert read(tmp_path) == [{"event": "train", **TRAIN}, {"event": "evaluation", **EVALUATION}], "not there before the end"
    written.close()
    text = (tmp_path / "log.txt").read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ", line) for line in text.splitlines())
    assert "student step 7/40" in text
    assert "shadow: top1 33.33" in text


def test_a_continued_journal_is_appended_to(tmp_path: Path) -> None:
    journal(tmp_path, 4)
    journal(tmp_path, 8, first=5)
    assert [line["global_step"] for line in read(tmp_path) if line["event"] == "train"] == list(range(1, 9))


@given(st.integers(0, 12), st.integers(0, 14), st.integers(1, 60))
def test_cut_back_leaves_what_a_run_that_stopped_there_would_have_left(
    tmp_path_factory: pytest.TempPathFactory, steps: int, kept: int, torn: int
) -> None:
    """Also where the process died within a line; and once more changes nothing."""
    folder, other = tmp_path_factory.mktemp("cut"), tmp_path_factory.mktemp("whole")
    journal(folder, steps)
    journal(other, min(steps, kept))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "train", **TRAIN, "global_step": steps + 1})[:torn])
    for _ in range(2):
        cut_back(folder / "metrics.jsonl", kept)
        assert (folder / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def test_cut_back_of_nothing_is_nothing(tmp_path: Path) -> None:
    cut_back(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_plain_lines_say_what_a_person_asks() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.say("hello")
    lines.phase(PHASE)
    lines.phase(PHASE | {"step": 12, "at_most": True})
    lines.train(TRAIN)
    lines.evaluation(EVALUATION)
    assert said == [
        "hello",
        "phase 2/2 student: 40 steps of 24 images",
        "phase 2/2 student: at most 40 steps of 24 images, from step 12",
        "student step 7/40 epoch 0.50 loss 0.3000 (ce 0.1000 kd 0.2000) lr 0.001 123 images/s wait 25% ETA 1:01",
        "student step 7 epoch 0.50 shadow: top1 33.33 top5 66.67 of 50 images",
    ]
    assert all("\n" not in line for line in said)


def test_a_loss_that_is_no_number_is_still_a_line(tmp_path: Path) -> None:
    written = Journal(tmp_path)
    written.train(TRAIN | {"loss": math.nan, "losses": {"ce": math.inf}, "eta": math.inf})
    written.close()
    line = read(tmp_path)[0]
    assert line["loss"] is None, "JSON has no NaN"
    assert line["losses"] == {"ce": None}
    assert "ETA ?" in (tmp_path / "log.txt").read_text()


class Breaks(Silent):
    def train(self, line: dict[str, Any]) -> None:
        raise ConnectionError("the tracker's server is away")


def test_a_reporter_that_fails_is_left_out_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    several = Several([Breaks(), Lines(said.append)])
    for _ in range(2):
        several.train(TRAIN)
        several.advance(7, 24)
    several.close()
    assert len(said) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "Breaks" in told
    assert "the tracker's server is away" in told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.4, "59:59"),
        (3600, "1:00:00"),
        (360_000, "100:00:00"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_of_a_phase_that_the_save_does_not_know_are_cut(tmp_path: Path) -> None:
    """A later phase tells of its teachers at the global step of the save that ended the one before."""
    written = Journal(tmp_path)
    for phase in ("teacher", "student"):
        written.evaluation(EVALUATION | {"phase": phase, "global_step": 7})
    written.close()
    cut_back(tmp_path / "metrics.jsonl", 7, ["teacher"])
    assert [line["phase"] for line in read(tmp_path)] == ["teacher"]
