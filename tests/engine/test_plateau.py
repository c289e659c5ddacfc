"""A phase whose rate waits for its own training loss, and which ends where that rate comes to its last value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.engine.checkpoint import saving
from kdscale.engine.describe import describe
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session
from kdscale.engine.schedule import cuts, learning_rate, over
from kdscale.errors import RecipeError
from kdscale.methods import Supervised
from kdscale.recipe import (
    SGD,
    Checkpointing,
    Constant,
    Evaluation,
    FromPhase,
    Model,
    Phase,
    Plateau,
    Recipe,
    from_json,
    to_json,
)
from kdscale.types import Progress
from tests.engine import small
from tests.engine.mishaps import killed_at_save, train
from tests.engine.test_run import same

STOPS = Plateau("train.loss", "min", patience=0, threshold=0.5, relative=True, end=1e-5, stops=True)
"""Half of the loss in every epoch is more than anything here falls, so each epoch after the first is a cut."""
LAST = 4 * small.TRAIN // 24  # steps to the end of the fourth epoch: the first, and three cuts
CLOCK = Progress(0, 100, 1000, 10.0, 60.0)


def recipe(data: Path, schedule: Plateau = STOPS, **changes: Any) -> Recipe:
    """A CNN for at most 12 epochs of 5 steps, saved every 3 steps, told of every 4."""
    phase = Phase(Supervised(), epochs=12, name="student", optimizer=SGD(0.01), schedule=schedule)
    settings: dict[str, Any] = {
        "networks": {"student": Model("cnn6")},
        "phases": (phase,),
        "ema": None,
        "evaluation": Evaluation(every=5),
        "checkpointing": Checkpointing(every_steps=3),
        "machine": replace(small.recipe(data).machine, log_every=4),
    }
    return small.recipe(data, **(settings | changes))


@pytest.fixture(scope="module")
def never_stopped(data: Path, session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plateau") / "out"
    assert train(recipe(data), out, session) == 0
    return out


# The rate


@pytest.mark.parametrize(("relative", "torch_mode"), [(False, "abs"), (True, "rel")])
@pytest.mark.parametrize("mode", ["min", "max"])
@given(values=st.lists(st.floats(0, 4), max_size=40), patience=st.integers(0, 4), threshold=st.sampled_from([0.0, 1e-3, 0.3]))
def test_it_is_torchs(mode: Any, relative: bool, torch_mode: Any, values: list[float], patience: int, threshold: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rival = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, 0.1, patience, threshold, torch_mode, min_lr=1e-3, eps=0
    )
    schedule = Plateau("train.loss", mode, 0.1, patience, threshold, relative, end=1e-3, stops=True)
    for number, value in enumerate(values, 1):
        rival.step(value)
        rate = learning_rate(schedule, 1.0, CLOCK, values[:number])
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert over(schedule, 1.0, values[:number]) == (rate < 1.0001e-3)


def test_a_loss_below_zero_must_fall_to_be_better() -> None:
    """torch asks the other way round here: its relative bound for -1 is -0.9, which anything near -1 passes."""
    schedule = Plateau("train.loss", "min", patience=0, threshold=0.1, relative=True)
    assert cuts(schedule, [-1.0, -1.05]) == 1
    assert cuts(schedule, [-1.0, -1.2]) == 0


def test_the_third_cut_of_ten_ends_at_a_thousandth_in_spite_of_rounding() -> None:
    schedule = replace(STOPS, patience=1)
    flat = [1.0] * 7  # the best one, then two a cut
    assert [over(schedule, 0.01, flat[:n]) for n in range(8)] == [False] * 7 + [True]
    assert learning_rate(schedule, 0.01, CLOCK, flat) == pytest.approx(1e-5)
    assert not over(replace(schedule, stops=False), 0.01, flat)
    assert not over(Constant(), 0.01, flat)


def test_a_milder_factor_ends_at_the_cut_that_reaches_the_end() -> None:
    schedule = replace(STOPS, factor=0.9)
    assert 0.01 * 0.9**66 < 1e-5 < 0.01 * 0.9**65
    assert not over(schedule, 0.01, [1.0] * 66)
    assert over(schedule, 0.01, [1.0] * 67)
    assert learning_rate(schedule, 0.01, CLOCK, [1.0] * 67) == 1e-5


def test_stopping_needs_a_rate_to_stop_at() -> None:
    with pytest.raises(ValueError, match=r"set schedule\.end"):
        Plateau(stops=True)
    assert from_json(to_json(recipe(Path("data")))).phases[0].schedule == STOPS


def test_a_phase_that_would_end_before_it_begins_is_refused(data: Path, session: Session, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"schedule\.end: phase 'student' stops at the rate 0\.01 and begins with 0\.01"):
        train(recipe(data, replace(STOPS, end=0.01)), tmp_path, session)


def test_it_is_shown_as_a_limit(data: Path) -> None:
    lines = list(describe(recipe(data, replace(STOPS, patience=5)), ranks=1))
    assert lines[1].startswith("phase 1 student: supervised, at most 12 epochs on 120 images")
    assert lines[3].endswith("plateau x 0.1 after 6 epochs without a better train.loss, ends at 1e-05")
    watching = list(describe(recipe(data, Plateau()), ranks=1))
    assert watching[1].startswith("phase 1 student: supervised, 12 epochs")
    assert watching[3].endswith("plateau x 0.1 after 6 evaluations without a better student.top1")


# The mean of an epoch


def test_the_mean_of_an_epoch_does_not_mind_lines_and_saves(session: Session) -> None:
    meter = Meter(session)
    for number in range(7):
        meter.add({"a": torch.tensor(float(number)), "b": torch.tensor(1.0)})
        if number == 2:
            meter.line()
        if number == 4:
            kept, meter = meter.state(), Meter(session)
            meter.load(kept, torch.device("cpu"))
    assert meter.epoch_mean() == 4.0
    meter.add({"a": torch.tensor(9.0)})
    assert meter.epoch_mean() == 9.0, "an epoch begins anew"


def test_a_skipped_step_is_no_part_of_the_mean(session: Session) -> None:
    meter = Meter(session)
    meter.add({"a": torch.tensor(2.0)})
    before = meter.sums_so_far()
    meter.add({"a": torch.tensor(float("nan"))})
    meter.forget(before)
    assert meter.epoch_mean() == 2.0
    assert meter.epoch_mean() is None, "an epoch of skipped steps alone is no best one"


# Whole runs


def history(out: Path) -> list[dict[str, Any]]:
    save = saving.newest(out / "checkpoints", lambda said: None)
    assert save is not None
    return list(saving.read_facts(save)["memory"]["history"])


def test_it_ends_at_the_third_cut(never_stopped: Path) -> None:
    lines = small.lines(never_stopped)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    assert lines[-1]["step"] == LAST
    assert [line["lr"] for line in lines] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-4])
    assert all(line["at_most"] for line in lines)
    assert "at most 60 steps of 24 images" in (never_stopped / "log.txt").read_text()
    means = [line for line in history(never_stopped) if line["name"] == "train"]
    assert [line["epoch"] for line in means] == [1, 2, 3, 4]
    assert [line["step"] for line in means] == [5, 10, 15, 20]


def test_the_means_are_those_of_the_log(never_stopped: Path, data: Path, session: Session, tmp_path: Path) -> None:
    told = recipe(data, machine=replace(small.recipe(data).machine, log_every=5))
    train(told, tmp_path, session)
    means = [line["loss"] for line in history(tmp_path) if line["name"] == "train"]
    assert [line["loss"] for line in small.lines(tmp_path)] == pytest.approx(means, rel=1e-12)
    assert [line["loss"] for line in history(never_stopped) if line["name"] == "train"] == means


def test_the_end_is_measured_saved_and_left_for_later_phases(never_stopped: Path) -> None:
    assert [(e["name"], e["step"]) for e in small.lines(never_stopped, "evaluation")] == [("student", LAST)]
    assert small.verdict(never_stopped)["code"] == 0
    left = small.weights(never_stopped)
    save = saving.read(saving.newest(never_stopped / "checkpoints", lambda said: None))  # type: ignore[arg-type]
    assert all(torch.equal(left[n.removeprefix("param/")], t) for n, t in save.trained.items() if n.startswith("param/"))


@pytest.mark.parametrize("step", [6, 12, 18, LAST])
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    never_stopped: Path, data: Path, session: Session, tmp_path: Path, step: int
) -> None:
    """In mid-epoch, where its sum is half done; between two cuts; at the save of the end itself."""
    killed_at_save(recipe(data), tmp_path, session, step)
    assert train(recipe(data), tmp_path, session) == 0
    same(tmp_path, never_stopped)
    assert history(tmp_path) == history(never_stopped)


def test_a_run_that_is_over_is_not_taken_up_again(never_stopped: Path, data: Path, session: Session) -> None:
    before = small.losses(never_stopped)
    assert train(recipe(data), never_stopped, session) == 0
    assert small.losses(never_stopped) == before


def test_it_may_wait_for_an_evaluation(data: Path, session: Session, tmp_path: Path) -> None:
    watching = replace(STOPS, metric="student.loss")
    train(recipe(data, watching, evaluation=Evaluation(every=1)), tmp_path, session)
    assert [e["step"] for e in small.lines(tmp_path, "evaluation")] == [5, 10, 15, LAST]
    assert small.lines(tmp_path)[-1]["step"] == LAST


def test_what_follows_begins_where_it_ended(data: Path, session: Session, tmp_path: Path) -> None:
    first = recipe(data).phases[0]
    second = Phase(
        Supervised(), steps=3, name="more", networks={"student": FromPhase("student")}, optimizer=SGD(1e-4), schedule=Constant()
    )
    train(recipe(data, phases=(first, second)), tmp_path, session)
    lines = small.lines(tmp_path)
    assert lines[-1]["phase"] == "more"
    assert lines[-1]["global_step"] == LAST + 3


@pytest.mark.ranks
def test_two_ranks_end_together_and_where_one_does(data: Path, tmp_path: Path) -> None:
    alone = recipe(data, batch_norm="sync")
    path = small.write(tmp_path / "r.json", alone)
    small.kdscale("train", path, "--out", tmp_path / "two", ranks=2)
    small.kdscale("train", path, "--out", tmp_path / "one")
    two, one = small.lines(tmp_path / "two"), small.lines(tmp_path / "one")
    assert [(line["step"], line["lr"]) for line in two] == [(line["step"], line["lr"]) for line in one]
    assert two[-1]["step"] == LAST
    means = [[line["loss"] for line in history(tmp_path / name) if line["name"] == "train"] for name in ("two", "one")]
    assert means[0] == pytest.approx(means[1], abs=1e-3)
