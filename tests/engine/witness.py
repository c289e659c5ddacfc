"""A method that writes down which samples it was given: supervised learning, and a line a micro-batch beside the run.

Each process writes a file of its own, ``OUT/../seen/<run>-<pid>.jsonl``, named by the variable below.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from kdscale.methods.supervised import Supervised, SupervisedDistiller
from kdscale.recipe.frozen import value
from kdscale.types import Batch, Context, Losses, Progress, Taught

FOLDER = "KDSCALE_TESTS_SEEN"


@value
class Witness(Supervised):
    kind: Literal["witness"] = "witness"  # type: ignore[assignment]

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
