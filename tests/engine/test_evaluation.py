"""Every image of the split once; the answers' names; and that evaluating leaves no trace in what is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.engine.evaluation import evaluate_frozen, evaluate_network, evaluate_stage, score, split_batches
from kdscale.engine.keeper import Memory, collect
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import Stage
from kdscale.errors import RunError
from kdscale.methods import KD, Shake, Supervised
from kdscale.recipe import SGD, Model, Phase
from kdscale.types import Batch
from tests.engine import small, stages


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def stage(data: Path, session: Session) -> Iterator[Stage]:
    """SHAKE on a CNN after two steps, so that statistics, moments and average are those of training."""
    made = next(stages.stages(stages.recipe_of(Shake(), "cnn", data), session))
    stages.run(made, Meter(session), 0, 2)
    yield made
    made.wrapped.release()


def batches(stage: Stage, size: int) -> list[Batch]:
    return list(split_batches(stage.eval_split, replace(stage.data, eval_batch=size), stage.session))


def by_hand(stage: Stage, answer: Any) -> tuple[float, float]:
    """(top-1, loss) of logits [B,C], image by image, in float64."""
    right, loss, seen = 0, 0.0, []
    for batch in batches(stage, 7):
        with torch.no_grad():
            logits = answer(batch).double()
        for row in batch.valid.nonzero()[:, 0].tolist():
            right += int(logits[row].argmax() == batch.labels[row])
            loss -= float(logits[row].log_softmax(0)[batch.labels[row]])
            seen.append(int(batch.index[row]))
    assert sorted(seen) == list(range(small.VAL))
    return right / small.VAL, loss / small.VAL


def test_scores_are_those_of_a_count_by_hand(stage: Stage) -> None:
    scores = evaluate_stage(stage)
    assert scores.keys() == {"student", "shadow", "ema"}
    assert all(entry["count"] == small.VAL for entry in scores.values())
    stage.distiller.eval()
    for name in ("student", "shadow"):
        top1, loss = by_hand(stage, lambda batch, name=name: stage.distiller(batch)[name])
        assert scores[name]["top1"] == top1
        assert scores[name]["loss"] == pytest.approx(loss, rel=1e-5)
    assert stage.ema is not None
    with stage.ema.swapped():
        top1, loss = by_hand(stage, lambda batch: stage.distiller(batch)["student"])
    assert (scores["ema"]["top1"], scores["ema"]["loss"]) == (top1, pytest.approx(loss, rel=1e-5))


def test_evaluating_changes_nothing_that_a_save_holds(stage: Stage) -> None:
    """Not the running statistics either: were a batch seen in train mode, a resumed run would be another."""
    meter = Meter(stage.session)
    before = collect(stage, Memory(), meter)
    kept = {name: t.clone() for name, t in (before.trained | before.buffers).items()}
    evaluate_stage(stage)
    evaluate_frozen(stage)
    after = collect(stage, Memory(), meter)
    assert after.facts == before.facts
    assert all(torch.equal((after.trained | after.buffers)[name], t) for name, t in kept.items())
    assert stage.distiller.training
    assert all(p.grad is None for p in stage.distiller.parameters())


def test_the_mode_comes_back_after_an_error(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(batch: Batch) -> dict[str, Tensor]:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(stage.distiller, "predictions", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        evaluate_stage(stage)
    assert stage.distiller.training


@pytest.mark.parametrize("size", [1, 16, 50, 64])
def test_the_size_of_a_batch_is_a_detail(stage: Stage, size: int) -> None:
    """Frozen statistics make each image's answer its own; only the order of float32 sums inside a layer may differ."""
    stage.distiller.eval()
    where = (stage.task, stage.eval_split.info, stage.session)
    scores = score(stage.wrapped, batches(stage, size), *where, whole=True)["student"]
    expected = score(stage.wrapped, batches(stage, 7), *where, whole=True)["student"]
    assert (scores["top1"], scores["top5"], scores["count"]) == (expected["top1"], expected["top5"], small.VAL)
    assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("change", ["one is missing", "one is seen twice in the place of another"])
def test_a_split_that_was_not_seen_once_each_has_no_score(stage: Stage, change: str) -> None:
    seen = batches(stage, 5)
    if change == "one is missing":
        seen[3].valid[2] = False
    else:
        seen[3].index[2] = seen[4].index[0]
    stage.distiller.eval()
    with pytest.raises(RunError, match=r"an evaluation counted"):
        score(stage.wrapped, seen, stage.task, stage.eval_split.info, stage.session, whole=True)


def test_frozen_networks_are_measured_on_all_or_on_some(data: Path, session: Session) -> None:
    stage = next(stages.stages(stages.recipe_of(KD(), "token", data), session))
    whole, some = evaluate_frozen(stage), evaluate_frozen(stage, 20)
    assert whole.keys() == some.keys() == {"teacher"}
    assert (whole["teacher"]["count"], some["teacher"]["count"]) == (small.VAL, 20)
    assert evaluate_frozen(stage, 10_000) == whole, "more than there are is all of them"
    top1, _ = by_hand(stage, lambda batch: stage.frozen["teacher"](batch.images).logits)
    assert whole["teacher"]["top1"] == top1


def test_a_network_alone_gives_the_score_that_it_has_in_its_distiller(stage: Stage) -> None:
    alone = evaluate_network(stage.distiller.student, stage.eval_split, stage.data, stage.task, stage.session)
    assert alone == evaluate_stage(stage)["student"]


@pytest.mark.ranks
def test_what_ranks_measure_is_the_network_that_they_leave(data: Path, tmp_path: Path) -> None:
    """Each rank's BatchNorm saw other images: the score is that of the mean of their statistics, which is what is saved."""
    phases = (Phase(Supervised(), steps=5, name="s", optimizer=SGD(0.5)),)
    recipe = small.recipe(data, networks={"student": Model("cnn6")}, phases=phases, ema=None)
    path = small.write(tmp_path / "r.json", recipe)
    small.kdscale("train", path, "--out", tmp_path / "out", ranks=2)
    told = small.lines(tmp_path / "out", "evaluation")[-1]
    left = json.loads(small.kdscale("evaluate", tmp_path / "out", "--json").stdout)
    assert told["top1"] == left["top1"]
    assert told["loss"] == pytest.approx(left["loss"], rel=1e-5)
