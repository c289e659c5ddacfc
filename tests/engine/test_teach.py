"""A stored teacher says what the live one says, wherever a run starts and however it is dealt; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdscale.engine.parallel import Session
from kdscale.engine.stage import build_stage
from kdscale.errors import RecipeError, RunError
from kdscale.methods import Deit, MultiKD
from kdscale.recipe import Model, Recipe
from tests.engine import small
from tests.engine.launch import two_ranks
from tests.engine.taught import learning, recipe_of, shards, steps_of, taught
from tests.engine.test_run import same


@pytest.fixture(scope="module")
def live(data: Path, session: Session) -> list[dict[str, Any]]:
    """Losses and norms of two epochs with the network itself."""
    return steps_of(learning(recipe_of(data), None), session)


def test_two_epochs_of_a_stored_teacher_are_the_live_ones(
    data: Path, session: Session, store: Path, live: list[dict[str, Any]]
) -> None:
    assert len(shards(store)) == 4
    assert not list(store.glob("**/*.tmp*"))
    assert not (store / "lock").exists()
    assert steps_of(learning(recipe_of(data), store), session) == live  # bit by bit: the micro-batches are the same
    other = steps_of(learning(recipe_of(data, "machine.accumulate=1"), store), session)
    for mine, theirs in zip(other, live, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-5)


def test_half_precision_keeps_the_losses_within_a_thousandth(
    data: Path, session: Session, tmp_path: Path, live: list[dict[str, Any]]
) -> None:
    half = taught(recipe_of(data), tmp_path / "half", session)
    for mine, theirs in zip(steps_of(learning(recipe_of(data), half), session, 0, 5), live[:5], strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    rows = np.load(shards(half)[0])
    assert (len(rows), rows.itemsize) == (10 * 24, 12 + 2 * small.CLASSES)


def test_labels_alone_are_all_that_the_hard_token_learns_from(data: Path, session: Session, tmp_path: Path) -> None:
    recipe = recipe_of(data, method=Deit())
    labels = taught(recipe, tmp_path / "labels", session, keep="label")
    assert steps_of(learning(recipe, labels), session, 6) == steps_of(learning(recipe, None), session, 6)


def test_two_teachers_have_a_store_each(data: Path, session: Session, tmp_path: Path) -> None:
    networks = {**small.recipe(data).networks, "teacher2": Model("wrn_16_1", floor=0)}
    recipe = recipe_of(data, method=MultiKD(teachers=2), networks=networks)
    both = taught(recipe, tmp_path / "both", session, type="fp32")
    assert {p.parent.name for p in both.glob("*/store.json")} == {"1-teacher", "1-teacher2"}
    whole = steps_of(learning(recipe, None), session, 0, 2)
    assert steps_of(learning(recipe, both, "teacher", "teacher2"), session, 0, 2) == whole
    assert steps_of(learning(recipe, both, "teacher2"), session, 0, 2) == whole  # the other one is live


def says_what_the_network_says(recipe: Recipe, store: Path, session: Session, first: int = 0) -> None:
    """Every micro-batch of a rank, from step ``first`` to the end. ``session``: its rank and size are those of the stream."""
    alone = dataclasses.replace(session, rank=0, size=1)
    live = build_stage(learning(recipe, None), 0, alone, None)
    stage = build_stage(learning(recipe, store), 0, alone, None)
    stage.session, seen = session, 0
    with closing(stage.stream()) as stream:
        for batch in stream.batches(first):
            said = stage.teach(batch, stage.progress(first))["teacher"].logits
            torch.testing.assert_close(said, live.frozen["teacher"](batch.images).logits, rtol=0, atol=1e-6)
            seen += 1
    assert seen == (stage.plan.total_steps - first) * recipe.machine.accumulate


@pytest.mark.parametrize(("first", "rank", "ranks", "accumulate"), [(0, 0, 1, 1), (7, 0, 1, 2), (5, 1, 2, 1), (3, 1, 2, 2)])
def test_any_step_rank_and_accumulation_finds_its_own_answers(
    data: Path, session: Session, store: Path, first: int, rank: int, ranks: int, accumulate: int
) -> None:
    mine = dataclasses.replace(session, rank=rank, size=ranks)
    says_what_the_network_says(recipe_of(data, f"machine.accumulate={accumulate}"), store, mine, first)


@pytest.mark.parametrize(("tail", "rows"), [("partial", 2 * small.TRAIN), ("drop", 2 * 96)])
def test_a_partial_and_a_dropped_tail(data: Path, session: Session, tmp_path: Path, tail: str, rows: int) -> None:
    recipe = recipe_of(data, "data.batch=32", f"data.epoch_tail={tail}", "data.repeats=1")
    place = taught(recipe, tmp_path / "s", session, type="fp32")
    assert sum(len(np.load(path)) for path in shards(place)) == rows
    says_what_the_network_says(recipe, place, session, 2)


def test_nothing_to_teach(data: Path, session: Session, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no phase of this recipe has a frozen network"):
        taught(small.two_phases(data), tmp_path / "s", session)
    broken = dataclasses.replace(recipe_of(data), networks={**recipe_of(data).networks, "teacher": Model("cnn6", floor=0.99)})
    with pytest.raises(RunError, match=r"below its floor"):
        taught(broken, tmp_path / "s", session)


def whole_run(file: Path, store: Path | None, out: Path, *words: str, ranks: int = 1) -> Path:
    stored = [] if store is None else [f"networks.teacher=stored:{store}"]
    small.kdscale("train", file, *stored, *words, "--out", out, ranks=ranks)
    return out


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_write_the_bytes_of_one_and_learn_the_same(data: Path, store: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", recipe_of(data))
    two_ranks("tests.engine.taught", file, tmp_path / "two")
    assert [p.read_bytes() for p in shards(tmp_path / "two")] == [p.read_bytes() for p in shards(store)]
    mine, theirs = (
        small.losses(whole_run(file, place, tmp_path / name, "machine.accumulate=1", ranks=2))
        for place, name in ((tmp_path / "two", "stored"), (None, "live"))
    )
    for a, b in zip(mine, theirs, strict=True):
        assert a[4] == pytest.approx(b[4], abs=1e-5)


@pytest.mark.slow
def test_killed_in_mid_epoch_a_run_with_a_store_ends_bit_by_bit(data: Path, store: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", recipe_of(data))
    whole = whole_run(file, store, tmp_path / "whole")
    process = small.start("train", file, f"networks.teacher=stored:{store}", "--out", tmp_path / "out")
    small.wait_for_step(process, 7)
    process.kill()
    process.wait()
    same(whole_run(file, store, tmp_path / "out"), whole)


@pytest.mark.slow
def test_an_interrupted_teach_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    file = small.write(tmp_path / "r.json", recipe_of(data, "epochs=16", "networks.teacher=wrn_40_2"))
    small.kdscale("teach", file, "--out", tmp_path / "whole", "--keep", "2")
    words = ("teach", file, "--out", tmp_path / "cut", "--keep", "2")
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        process = small.start(*words)
        small.wait_for_step(process, 5)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == code
        assert not shards(tmp_path / "cut")  # its one shard was not whole
    small.kdscale(*words)
    assert [p.read_bytes() for p in shards(tmp_path / "cut")] == [p.read_bytes() for p in shards(tmp_path / "whole")]
