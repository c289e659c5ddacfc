"""Signals in the midst of evaluations and saves: the run is left at once, and continues as if it had not been."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdscale.data import evaluate
from kdscale.engine import evaluation
from kdscale.engine.checkpoint import saving
from kdscale.engine.parallel import Session
from kdscale.engine.reporter import cut_back
from kdscale.errors import DataError
from kdscale.methods import KD
from kdscale.recipe import AdamW, Cosine, Ema, Evaluation, Model, Phase, Plateau, Recipe
from tests.engine import small
from tests.engine.mishaps import EPOCH, Patch, equal, log, newest_whole, short, taught, train

BATCHES = 7  # of an evaluation, and one more look that finds none


@pytest.fixture(scope="module")
def watched(data: Path) -> Recipe:
    """Evaluates after every epoch of five steps and at the end, step 12, with an EMA; saves in between at 4, 8 and 12."""
    phases = (Phase(KD(), steps=12, name="student", optimizer=AdamW(1e-3), schedule=Cosine()),)
    networks = {"student": Model("cnn6"), "teacher": Model("cnn6", floor=0)}
    recipe = short(data, every=4, ema=Ema(0.9), evaluation=Evaluation(every=1), phases=phases, networks=networks)
    return replace(recipe, data=replace(recipe.data, eval_batch=8, held_out=0))


@pytest.fixture(scope="module")
def whole(watched: Recipe, session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    train(watched, out, session)
    return out


def at_batch(patch: Patch, number: int, what: Any) -> None:
    """``what()`` when batch ``number`` of all evaluations of a start is read, counted from 0."""
    before, calls = evaluation._next, [0]

    def instead(source: Any) -> Any:
        calls[0] += 1
        if calls[0] == number + 1:
            what()
        return before(source)

    patch.setattr(evaluation, "_next", instead)


def ask(number: signal.Signals = signal.SIGUSR1) -> Any:
    return lambda: os.kill(os.getpid(), number)


def same(a: Path, b: Path) -> None:
    """Losses, weights with the EMA, all that evaluations said, and the best."""
    equal(small.weights(a), small.weights(b))
    assert small.losses(a) == small.losses(b)
    told = [
        [(e["step"], e["name"], e["top1"], e["loss"], e["count"]) for e in small.lines(out, "evaluation")] for out in (a, b)
    ]
    assert told[0] == told[1]
    assert os.readlink(a / "best") == os.readlink(b / "best")
    mine, theirs = (saving.read_facts(out / "checkpoints" / saving.name_of(12))["memory"] for out in (a, b))
    assert mine | {"seconds": 0} == theirs | {"seconds": 0}


@pytest.mark.parametrize(("batch", "step"), [(BATCHES + 3, 5), (2 * BATCHES + 4, 10), (3 * BATCHES + 9, 12)])
def test_a_signal_during_an_evaluation(
    batch: int, step: int, watched: Recipe, whole: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The teachers' evaluation comes first; then those after steps 5, 10 and 12."""
    at_batch(monkeypatch, batch, ask())
    assert train(watched, tmp_path, session) == 75
    assert newest_whole(tmp_path) == step
    assert "SIGUSR1 asked for a stop; saved" in log(tmp_path)
    monkeypatch.undo()
    assert train(watched, tmp_path, session) == 0
    same(tmp_path, whole)


@pytest.mark.slow
def test_signals_in_the_evaluation_that_is_made_up(
    watched: Recipe, whole: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    for batch in (BATCHES + 3, 2, 0):
        with Patch.context() as patch:
            at_batch(patch, batch, ask(signal.SIGTERM))
            assert train(watched, tmp_path, session) == 75
        assert newest_whole(tmp_path) == 5
        assert small.verdict(tmp_path)["last_save"] == saving.name_of(5)
    train(watched, tmp_path, session)
    same(tmp_path, whole)


def test_a_signal_before_the_first_step_leaves_nothing_to_save(
    watched: Recipe, whole: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    at_batch(monkeypatch, 2, ask())
    assert train(watched, tmp_path, session) == 75
    assert "nothing was trained yet" in small.verdict(tmp_path)["reason"]
    assert newest_whole(tmp_path) is None
    monkeypatch.undo()
    train(watched, tmp_path, session)
    same(tmp_path, whole)


@pytest.mark.slow
def test_a_signal_while_the_next_phase_begins(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    recipe = taught(data)
    recipe = replace(recipe, data=replace(recipe.data, eval_batch=8, held_out=0))
    train(recipe, tmp_path / "whole", session)
    at_batch(monkeypatch, BATCHES + 4, ask())
    assert train(recipe, tmp_path / "out", session) == 75
    assert newest_whole(tmp_path / "out") == EPOCH + 2
    monkeypatch.undo()
    train(recipe, tmp_path / "out", session)
    assert small.losses(tmp_path / "out") == small.losses(tmp_path / "whole")
    equal(small.weights(tmp_path / "out", "02-student"), small.weights(tmp_path / "whole", "02-student"))


@pytest.mark.slow
def test_a_plateau_that_waits_for_the_evaluation(data: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    """The means of epochs that it watches are counted once, and its rates are those of a run that nothing happened to."""
    plateau = Plateau(metric="train.loss", factor=0.5, patience=0, threshold=0.5)
    phases = (Phase(KD(), steps=17, name="student", optimizer=AdamW(1e-3), schedule=plateau),)
    networks = {"student": Model("cnn6"), "teacher": Model("cnn6", floor=0)}
    recipe = short(data, evaluation=Evaluation(every=1, teachers=False), phases=phases, networks=networks)
    recipe = replace(recipe, data=replace(recipe.data, eval_batch=8, held_out=0))
    train(recipe, tmp_path / "whole", session)
    assert len({line["lr"] for line in small.lines(tmp_path / "whole")}) > 1
    at_batch(monkeypatch, BATCHES + 3, ask())
    assert train(recipe, tmp_path / "out", session) == 75
    monkeypatch.undo()
    train(recipe, tmp_path / "out", session)
    assert small.losses(tmp_path / "out") == small.losses(tmp_path / "whole")


def test_a_signal_during_a_save(watched: Recipe, whole: Path, session: Session, tmp_path: Path, monkeypatch: Patch) -> None:
    before = saving.write_tensors

    def instead(path: Path, *words: Any) -> None:
        if "step-00000008" in path.parent.name and path.name.startswith("trained"):
            os.kill(os.getpid(), signal.SIGUSR1)
        before(path, *words)

    monkeypatch.setattr(saving, "write_tensors", instead)
    assert train(watched, tmp_path, session) == 75
    assert newest_whole(tmp_path) in (8, 9)
    monkeypatch.undo()
    train(watched, tmp_path, session)
    same(tmp_path, whole)


def test_an_evaluation_that_cannot_be_read_loses_no_step(
    watched: Recipe, whole: Path, session: Session, tmp_path: Path, monkeypatch: Patch
) -> None:
    """A shard of the evaluation split is gone after step 10; when it is back the run goes on from there."""

    def gone() -> None:
        raise DataError("shard x is missing; restore it")

    before, calls = evaluate.EvaluationReader._image, [0]

    def instead(reader: Any, sample: int) -> Any:
        calls[0] += 1
        if calls[0] > 2 * small.VAL + 20:
            gone()
        return before(reader, sample)

    monkeypatch.setattr(evaluate.EvaluationReader, "_image", instead)
    recipe = replace(watched, data=replace(watched.data, read="stream"))
    with pytest.raises(DataError, match="shard x is missing"):
        train(recipe, tmp_path, session)
    assert newest_whole(tmp_path) == 10
    assert small.verdict(tmp_path).items() >= {"code": 64, "global_step": 10, "last_save": saving.name_of(10)}.items()
    monkeypatch.undo()
    train(recipe, tmp_path, session)
    same(tmp_path, whole)


def test_lines_of_an_evaluation_that_is_owed_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        f'{{"event": "{event}", "phase": "student", "global_step": {step}}}\n'
        for event, step in (("evaluation", 5), ("train", 10), ("evaluation", 10), ("train", 11))
    ]
    for owed, kept in ((True, lines[:2]), (False, lines[:3])):
        path.write_text("".join(lines))
        cut_back(path, 10, ["student"], owed)
        assert path.read_text() == "".join(kept)
