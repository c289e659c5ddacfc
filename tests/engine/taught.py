"""Small stores of a teacher's answers, in shards of three steps, and recipes that learn from them.

For ranks that a launcher starts: words are a recipe's file and the folder.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from kdscale.engine import teach as teaching
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import build_stage
from kdscale.methods import Shake
from kdscale.recipe import AdamW, Phase, Recipe, Stored, from_json, override, resolve
from tests.engine import small, stages

EPOCHS = 2
SETTINGS = ["data.repeats=3", "machine.accumulate=2"]  # beside mixup, cutmix, smoothing and EMA
STEPS = 3
BYTES = STEPS * 24 * (12 + 4 * small.CLASSES)  # of 24 rows of float32


def recipe_of(data: Path, *words: str, method: Any = None, **changes: Any) -> Recipe:
    phase = Phase(method or Shake(), epochs=EPOCHS, name="student", optimizer=AdamW(1e-3, clip=1.0))
    return override(small.recipe(data, phases=(phase,), **changes), [*SETTINGS, *words])


def taught(recipe: Recipe, folder: Path, session: Session, **wish: Any) -> Path:
    teaching.teach(recipe, folder, session, lambda text: None, teaching.Wish(**wish))
    return folder


def learning(recipe: Recipe, store: Path | None, *roles: str) -> Recipe:
    stored = {} if store is None else dict.fromkeys(roles or ("teacher",), Stored(str(store)))
    return resolve(dataclasses.replace(recipe, networks={**recipe.networks, **stored}))


def steps_of(recipe: Recipe, session: Session, first: int = 0, count: int | None = None) -> list[dict[str, Any]]:
    stage = build_stage(recipe, 0, session, None)
    return stages.run(stage, Meter(session), first, stage.plan.total_steps - first if count is None else count)


def shards(store: Path) -> list[Path]:
    return sorted(store.glob("1-teacher/*.npy"))


def main(recipe: Path, out: Path) -> None:
    torch.set_num_threads(1)
    teaching.SHARD = BYTES
    session = connect()
    teaching.teach(from_json(recipe.read_text()), out, session, lambda text: None, teaching.Wish(type="fp32"))
    session.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
