"""Means of a window, whatever interrupts it: a save in its midst, other losses from one step on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect

values = st.lists(st.tuples(st.floats(-10, 10, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def losses(pair: tuple[float, float]) -> dict[str, torch.Tensor]:
    return {"ce": torch.tensor(pair[0], requires_grad=True), "kd": torch.tensor(pair[1], requires_grad=True)}


@given(values)
def test_a_line_holds_the_means_and_their_sum(session: Session, pairs: list[tuple[float, float]]) -> None:
    meter = Meter(session)
    for pair in pairs:
        total = meter.add(losses(pair))
        assert not total.requires_grad
        assert float(total) == pytest.approx(sum(pair))
    line = meter.line()
    for place, name in enumerate(("ce", "kd")):
        assert line["losses"][name] == pytest.approx(sum(pair[place] for pair in pairs) / len(pairs))
    assert line["loss"] == pytest.approx(sum(line["losses"].values()))
    assert meter.line() == {}, "the window did not begin anew"


@given(values, values)
def test_through_json_the_next_line_is_the_same_to_the_bit(
    session: Session, before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> None:
    whole, first = Meter(session), Meter(session)
    for pair in before:
        whole.add(losses(pair))
        first.add(losses(pair))
    second = Meter(session)
    second.load(json.loads(json.dumps(first.state())), torch.device("cpu"))
    for pair in after:
        whole.add(losses(pair))
        second.add(losses(pair))
    assert second.line()["losses"] == whole.line()["losses"]


def test_an_empty_window_is_saved_as_one(session: Session) -> None:
    meter = Meter(session)
    meter.load(json.loads(json.dumps(Meter(session).state())), torch.device("cpu"))
    assert meter.line() == {}


def test_sums_of_several_ranks_become_their_mean_on_one(session: Session) -> None:
    """Each rank saw as many micro-batches; the mean over ranks is what they would have said together."""
    meter = Meter(session)
    meter.load({"names": ["ce"], "sums": [[6.0], [2.0]], "count": 4}, torch.device("cpu"))
    assert meter.line()["losses"] == {"ce": 1.0}


def test_losses_of_other_names_begin_a_window_of_their_own(session: Session) -> None:
    """A term that enters after a warm-up must not be divided by the steps in which it was not there."""
    meter, one = Meter(session), torch.ones(())
    for _ in range(5):
        meter.add({"ce": one})
    for _ in range(2):
        meter.add({"ce": one, "kd": 3 * one})
    assert meter.line()["losses"] == {"ce": 1.0, "kd": 3.0}


def test_small_differences_survive_a_long_window(session: Session) -> None:
    meter = Meter(session)
    for _ in range(10_000):
        meter.add({"ce": torch.tensor(1000.1)})
    assert meter.line()["losses"]["ce"] == pytest.approx(float(torch.tensor(1000.1)), rel=1e-12)


def test_speed_is_of_all_images_and_waiting_a_share(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr("kdscale.engine.meter.time.perf_counter", lambda: next(clock))
    meter = Meter(session)
    meter.add({"ce": torch.ones(())})
    meter.images, meter.waited = 500, 2.5
    line = meter.line()
    assert (line["images_per_second"], line["data_wait"]) == (50.0, 0.25)
    assert (meter.images, meter.waited) == (0, 0.0)


def test_all_ranks_know_the_same_waits_whatever_their_own_clocks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided by them holds a collective: a rank that came to another share would wait in it alone."""
    monkeypatch.setattr(Session, "total", lambda self, t: t + torch.tensor([0.0, 0.0, 0.4], dtype=t.dtype))
    for seconds in (10.0, 11.0):
        clock = iter([100.0, 100.0 + seconds, 100.0 + seconds])
        monkeypatch.setattr("kdscale.engine.meter.time.perf_counter", lambda clock=clock: next(clock))
        meter = Meter(replace(session, rank=0, size=2))
        meter.add({"ce": torch.ones(())})
        meter.waited = 0.1 * seconds
        assert meter.line()["data_wait"] == 0.4
        assert meter.waits == [0.1, 0.4]


def test_a_skipped_step_of_other_losses_leaves_the_window_as_it_was(session: Session) -> None:
    meter = Meter(session)
    meter.add({"task": torch.tensor(1.0), "teacher": torch.tensor(2.0)})
    before = meter.sums_so_far()
    meter.add({"task": torch.tensor(float("nan"))})
    meter.forget(before)
    assert meter.line()["losses"] == {"task": 1.0, "teacher": 2.0}
