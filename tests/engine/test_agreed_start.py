"""Ranks that would begin with something else than rank 0 are refused, and what differs is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from kdscale.engine.parallel import Session
from kdscale.engine.stage import Stage
from kdscale.engine.start import agree_on_start
from kdscale.errors import RunError
from kdscale.methods import KD
from tests.engine import stages


class Twice(Session):
    """Two ranks in one process: what the second holds is what ``other`` makes of the first's."""

    other: Any = staticmethod(dict)

    def all_of(self, thing: Any) -> list[Any]:
        return [thing, self.other(thing) if isinstance(thing, dict) else thing]


@pytest.fixture(scope="module")
def stage(data: Path, session: Session) -> Stage:
    (made,) = stages.stages(stages.recipe_of(KD(), "cnn", data), session)
    return made


def held_by(stage: Stage) -> dict[str, str]:
    """What ``stage`` would tell the others."""
    told: list[dict[str, str]] = []
    stage.session = both(stage.session, lambda mine: told.append(dict(mine)) or mine)
    agree_on_start(stage)
    return told[0]


def both(session: Session, other: Any) -> Twice:
    plain = {field.name: getattr(session, field.name) for field in fields(Session)}
    made = Twice(**(plain | {"size": 2}))
    made.other = other
    return made


def test_a_teacher_of_other_weights_is_named(stage: Stage) -> None:
    """Gradients are averaged over it without a word: the ranks would learn from two teachers."""
    before = held_by(stage)
    weight = next(stage.frozen["teacher"].parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1e-6
    stage.session = both(stage.session, lambda mine: before)
    with pytest.raises(RunError, match=r"rank 1 \(.*\) holds another teacher than rank 0"):
        agree_on_start(stage)
    with torch.no_grad():
        weight.view(-1)[0] -= 1e-6


@pytest.mark.parametrize("part", ["version", "recipe", "data set", "start", "teacher"])
def test_each_part_is_told_by_its_name(stage: Stage, part: str) -> None:
    assert part in held_by(stage)
    stage.session = both(stage.session, lambda mine: mine | {part: "other"})
    with pytest.raises(RunError, match=f"holds another {part} than rank 0"):
        agree_on_start(stage)


def test_statistics_are_part_of_the_start(stage: Stage) -> None:
    before = held_by(stage)
    next(b for name, b in stage.distiller.named_buffers() if name.endswith("running_var")).add_(0.5)
    assert {name for name, word in held_by(stage).items() if word != before[name]} == {"start"}


def test_one_process_has_nobody_to_agree_with(stage: Stage, session: Session) -> None:
    stage.session = session
    agree_on_start(stage)
