"""Phases whose epochs do not begin with rank 0, or end with a smaller batch: 'drop' and 'partial', on noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdscale.data import pack_arrays
from kdscale.engine.parallel import Session
from kdscale.engine.stage import Stage, build_stage
from kdscale.methods import Method
from kdscale.recipe import SGD, Augment, Data, Machine, Model, Phase, Recipe, resolve

from . import small

TAILS = {"drop": (121, 24), "partial": (120, 32)}
"""tail -> (samples, batch); epochs of 'drop' begin at every place of 2 ranks x 2 micro-batches."""


def pack(folder: Path, samples: int) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images = rng.integers(0, 255, (samples, small.SIDE, small.SIDE, 3), dtype=np.uint8)
        pack_arrays(images, np.arange(samples) % small.CLASSES, str(folder), split=split, name="tiny", names=tuple("abcd"))
    return folder


def stage_of(method: Method, folder: Path, tail: str, session: Session, accumulate: int = 1) -> Stage:
    """Four epochs with the given tail, statistics of batch norm over all ranks; what a method wants frozen is random."""
    data: dict[str, Any] = {"batch": TAILS[tail][1], "epoch_tail": tail, "workers": 0}
    recipe = Recipe(
        networks={"student": Model("wrn_16_1")} | {role: Model("wrn_16_2", floor=0) for role in method.needs().frozen},
        data=Data(str(folder), train=Augment(size=small.SIDE, crop="pad", pad=2), **data),
        phases=(Phase(method, epochs=4, optimizer=SGD(1e-3)),),
        batch_norm="sync",
        machine=Machine(accumulate=accumulate, threads=1),
    )
    return build_stage(resolve(recipe), 0, session, None)
