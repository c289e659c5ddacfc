"""Methods for tests: one that writes down which samples it was given, a line a micro-batch; one whose loss breaks.

Each process writes a file of its own, ``OUT/../seen/<run>-<pid>.jsonl``, named by the variable below.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kdscale.methods.supervised import Supervised, SupervisedDistiller
from kdscale.recipe.frozen import value
from kdscale.types import Batch, Context, Losses, Progress, Taught

FOLDER = "KDSCALE_TESTS_SEEN"


@value
class Witness(Supervised):
    kind: Literal["tests-witness"] = "tests-witness"  # type: ignore[assignment]

    def build(self, context: Context) -> WitnessDistiller:
        return WitnessDistiller(context)


class WitnessDistiller(SupervisedDistiller):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.step = 0

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.step = progress.step

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        line = {"step": self.step, "samples": list(zip(batch.position.tolist(), batch.index.tolist(), strict=True))}
        with (Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return super().losses(batch, taught)


@value
class Poison(Supervised):
    """Its loss is not finite in one step, on the last rank alone."""

    step: int = 3
    kind: Literal["tests-poison"] = "tests-poison"  # type: ignore[assignment]

    def build(self, context: Context) -> PoisonDistiller:
        return PoisonDistiller(self, context)


class PoisonDistiller(SupervisedDistiller):
    poison: Tensor  # [] float: 1, or what makes the loss no number

    def __init__(self, method: Poison, context: Context) -> None:
        super().__init__(context)
        self.at, self.last = method.step, context.world.rank == context.world.size - 1
        self.register_buffer("poison", torch.ones(()), persistent=False)

    def before_step(self, progress: Progress) -> None:
        super().before_step(progress)
        self.poison.fill_(float("nan") if self.last and progress.step == self.at else 1.0)

    def losses(self, batch: Batch, taught: Taught) -> Losses:
        return {name: self.poison * loss for name, loss in super().losses(batch, taught).items()}


def seen(folder: Path) -> dict[int, set[tuple[int, int]]]:
    """step -> (position, sample) of its global batch, over all processes of one start."""
    steps: dict[int, set[tuple[int, int]]] = {}
    for path in folder.glob("*.jsonl"):
        for text in path.read_text().splitlines():
            try:
                line: dict[str, Any] = json.loads(text)
            except json.JSONDecodeError:  # the process was killed while it wrote
                continue
            steps.setdefault(line["step"], set()).update(map(tuple, line["samples"]))
    return steps
