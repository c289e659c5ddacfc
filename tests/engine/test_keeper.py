"""What a stage takes from a save of other ranks, and what it says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdscale.engine.keeper import Memory, collect, restore
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session
from kdscale.methods import Supervised
from tests.engine import stages


@pytest.mark.parametrize(
    ("ranks", "accumulate", "kind", "warned"),
    [(1, 1, "cnn", False), (2, 1, "cnn", True), (1, 4, "cnn", True), (2, 1, "token", False)],
)
def test_a_batch_norm_that_sees_other_numbers_of_images_is_told(
    ranks: int, accumulate: int, kind: str, warned: bool, data: Path, session: Session
) -> None:
    (stage,) = stages.stages(stages.recipe_of(Supervised(), kind, data), session)
    save = collect(stage, Memory(), Meter(session))
    assert save.facts["world"]["ranks"] == save.facts["world"]["accumulate"] == 1
    save.facts["world"] |= {"ranks": ranks, "accumulate": accumulate}
    before = len(stage.warnings)
    restore(stage, save, Meter(session))
    said = stage.warnings[before:]
    assert bool(said) == warned
    assert all(f"of {ranks} ranks x {accumulate} micro-batches and this is 1 x 1" in text for text in said)


def test_as_many_micro_batches_of_all_ranks_are_the_same_size(data: Path, session: Session) -> None:
    recipe = stages.recipe_of(Supervised(), "cnn", data)
    (stage,) = stages.stages(replace(recipe, machine=replace(recipe.machine, accumulate=2)), session)
    save = collect(stage, Memory(), Meter(session))
    save.facts["world"] |= {"ranks": 2, "accumulate": 1}
    before = len(stage.warnings)
    restore(stage, save, Meter(session))
    assert stage.warnings[before:] == []
