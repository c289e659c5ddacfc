"""Rare orders of events, forced: a kill is an error that nothing catches, raised where the process would have died."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.engine import run
from kdscale.engine.checkpoint import saving
from kdscale.engine.parallel import Session
from kdscale.methods import KD, Supervised
from kdscale.recipe import (
    AdamW,
    Checkpointing,
    Constant,
    Evaluation,
    FromPhase,
    Model,
    Phase,
    Recipe,
)
from tests.engine import small

EPOCH = small.TRAIN // 24  # steps
Patch = pytest.MonkeyPatch


class Killed(BaseException):
    """The end of the process, as far as the engine can tell."""


def short(data: Path, steps: int = 6, every: int = 2, keep: int = 3, **changes: Any) -> Recipe:
    """A CNN with BatchNorm for a few steps; its only evaluation is that of the end."""
    settings: dict[str, Any] = {
        "networks": {"student": Model("cnn6")},
        "phases": (Phase(Supervised(), steps=steps, name="student", optimizer=AdamW(1e-3), schedule=Constant()),),
        "ema": None,
        "evaluation": Evaluation(every=1000),
        "checkpointing": Checkpointing(every_steps=every, keep=keep),
    }
    return small.recipe(data, **(settings | changes))


def taught(data: Path, **changes: Any) -> Recipe:
    """A teacher's phase of one epoch and two steps, and a student's of three steps."""
    when = changes.pop("at", "end")
    phases = (
        Phase(Supervised(), steps=EPOCH + 2, name="teacher", networks={"student": Model("cnn6")}, optimizer=AdamW(1e-3)),
        Phase(KD(), steps=3, name="student", optimizer=AdamW(1e-3)),
    )
    networks = {"student": Model("cnn6"), "teacher": FromPhase("teacher", at=when, floor=0)}
    return short(data, networks=networks, phases=phases, **changes)


def train(recipe: Recipe, out: Path, session: Session, overwrite: bool = False) -> int:
    return run.train(recipe, out, session, lambda recipe, path: [], overwrite=overwrite)


def killed(recipe: Recipe, out: Path, session: Session, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """A run that ends at the first call of ``owner.name`` for which ``when`` holds."""
    before = getattr(owner, name)

    def instead(*words: Any) -> Any:
        if when(*words):
            raise Killed
        return before(*words)

    with Patch.context() as patch:
        patch.setattr(owner, name, instead)
        with pytest.raises(Killed):
            train(recipe, out, session)


def killed_at_save(recipe: Recipe, out: Path, session: Session, step: int) -> None:
    killed(recipe, out, session, saving, "write", lambda folder, at, save: at == step)


def saved(out: Path) -> list[int]:
    return [saving.step_of(path) for path in saving.all_saves(out / "checkpoints")]


def newest_whole(out: Path) -> int | None:
    path = saving.newest(out / "checkpoints", lambda text: None)
    return None if path is None else saving.step_of(path)


def log(out: Path) -> str:
    return (out / "log.txt").read_text()


def damage(out: Path, step: int) -> None:
    os.truncate(out / "checkpoints" / saving.name_of(step) / "trained.safetensors", 1000)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name, tensor in a.items() if not torch.equal(tensor, b[name])] == []


# The folder
