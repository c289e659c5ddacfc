"""Whole runs under several back-ends in one pool of ranks: a process is started once and trains one recipe after another.

Started by a launcher with a file of jobs: ``[{"recipe": file, "out": folder, "parallel": word, "set": ["path=value"]}]``.
DDP and FSDP2 share a pool, the stages of ZeRO another: DeepSpeed wants to be asked for when a process begins.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdscale.cli.terminal import reporters
from kdscale.engine.parallel import connect
from kdscale.engine.run import train
from kdscale.methods import DML, KD, Crd, Method, Sftn, Shake, StageByStage, Supervised
from kdscale.recipe import (
    SGD,
    AdamW,
    Augment,
    Checkpointing,
    Data,
    Ema,
    Evaluation,
    Machine,
    Model,
    Phase,
    Recipe,
    from_json,
    override,
)
from tests.engine import small, witness

assert witness.Witness.kind  # registered, so that a recipe may name it
STEPS = 20
CASES: dict[str, Method] = {
    "supervised": Supervised(),
    "kd": KD(),
    "crd": Crd(negatives=64),
    "dml": DML(students=3),
    "shake": Shake(),
    "stage_by_stage": StageByStage(stages=2),
    "sftn": Sftn(),
}
OTHERS: dict[str, Method] = {"poison": witness.Poison()}
STUDENT = Model("resnet8")
TOKEN = Model("deit_tiny_distilled_patch16_224", drop_path=0.2, args=small.TINY)


def recipe_of(name: str, data: Path, **changes: Any) -> Recipe:
    """Twenty steps a phase of one method: accumulation, EMA, mixing where the method bears it, BatchNorm over all ranks."""
    method = (CASES | OTHERS)[name]
    needs, token = method.needs(), name in ("shake", "poison")
    networks = dict.fromkeys((*needs.trained, *needs.drawn), TOKEN if token else STUDENT)
    networks |= {role: Model("resnet8x4", floor=0) for role in needs.frozen}
    if name == "sftn":
        networks |= {"teacher": Model("resnet8x4")}
    # Adam turns the rounding of a gradient near zero into a step, and long steps the rounding of a loss into another path
    rate = AdamW(1e-3, clip=1.0) if token else SGD(1e-3, clip=1.0)
    mixed = {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1} if token else {}
    settings: dict[str, Any] = {
        "networks": networks,
        "data": Data(
            str(data),
            batch=24,
            train=Augment(size=small.SIDE, crop="pad", pad=2, **mixed),
            eval_crop=1.0,
            workers=0,
            held_out=0,
        ),
        "phases": (Phase(method, steps=STEPS, name="phase", optimizer=rate),),
        "ema": Ema(0.9),
        "evaluation": Evaluation(every=1000, teachers=False),
        "checkpointing": Checkpointing(every_epochs=None),
        "batch_norm": "sync",
        "machine": Machine(log_every=1, threads=1, accumulate=2),
    }
    return Recipe(**(settings | changes))


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    todo = json.loads(jobs.read_text())
    first = from_json(Path(todo[0]["recipe"]).read_text())
    session = connect(replace(first.machine, parallel=todo[0]["parallel"]))
    for job in todo:
        recipe = override(
            from_json(Path(job["recipe"]).read_text()), [f"machine.parallel={job['parallel']}", *job.get("set", [])]
        )
        there = replace(session, parallel=job["parallel"])
        code = train(recipe, Path(job["out"]), there, reporters)
        assert code == 0, code
    session.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
