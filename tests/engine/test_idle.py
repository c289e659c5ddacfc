"""A parameter that is trained and gets no gradient is told of before it can confuse the ranks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdscale.engine.idle import look_for_idle
from kdscale.engine.parallel import Session, Wrapped, wrap
from kdscale.errors import RecipeError


class Spare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, batch: Any, taught: Any) -> dict[str, torch.Tensor]:
        return {"task": self.used(batch).square().mean()}


@pytest.fixture
def wrapped(session: Session) -> Wrapped:
    module = Spare()
    named = dict(module.named_parameters())
    groups = [{"names": list(named), "params": list(named.values())}]
    made = wrap(session, module, groups, lambda groups: torch.optim.SGD(groups[0]["params"], lr=0.1))
    made.accumulate(torch.randn(4, 3), {}, 1.0, last=True)  # type: ignore[arg-type]
    return made


def stage_of(wrapped: Wrapped, session: Session) -> Any:
    return SimpleNamespace(wrapped=wrapped, session=session, phase=SimpleNamespace(name="student"))


def test_one_process_is_warned(wrapped: Wrapped, session: Session) -> None:
    said: list[str] = []
    look_for_idle(stage_of(wrapped, session), said.append)
    assert said == [
        "warning: phase 'student' trains 'spare.weight' and 1 more parameters, to which none of its losses sends a gradient: it stays"
        " as it is"
    ]


def test_ranks_of_ddp_are_refused_and_sharded_ones_are_not(wrapped: Wrapped, session: Session) -> None:
    said: list[str] = []
    with pytest.raises(RecipeError, match=r"'spare.weight' .*use it in a loss, freeze it, or leave it out"):
        look_for_idle(stage_of(wrapped, replace(session, size=2)), said.append)
    look_for_idle(stage_of(wrapped, replace(session, size=2, parallel="fsdp2")), said.append)
    assert len(said) == 1


def test_where_everything_learns_nothing_is_said(wrapped: Wrapped, session: Session) -> None:
    wrapped.groups = [{"names": ["used.weight"], "params": [wrapped.module.used.weight]}]  # type: ignore[union-attr]
    look_for_idle(stage_of(wrapped, replace(session, size=2)), lambda text: pytest.fail(text))
