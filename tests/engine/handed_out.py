"""One rank of a back-end: what was collected for a save does not move when training goes on.

python -m tests.engine.handed_out PARALLEL FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kdscale.engine.keeper import Memory, collect
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import connect
from kdscale.engine.stage import build_stage
from kdscale.recipe import Machine, override, resolve
from tests.engine import small


def main(parallel: str, folder: Path) -> None:
    session = connect(Machine(parallel=parallel))  # type: ignore[arg-type]
    recipe = override(small.recipe(small.shards(folder)), [f"machine.parallel={parallel}"])
    stage = build_stage(resolve(recipe), 0, session, None)
    stage.distiller.train()
    stream = stage.stream()
    batches = stream.batches(0)

    def step() -> None:
        stage.begin_step(stage.progress(0), [])
        batch = next(batches)
        stage.wrapped.accumulate(batch, stage.teach(batch, stage.progress(0)), 1.0, last=True)
        stage.wrapped.update(1.0)
        if stage.ema:
            stage.ema.update()

    try:
        step()
        save = collect(stage, Memory(), Meter(session))
        held = save.trained | save.buffers
        before = {name: tensor.clone() for name, tensor in held.items()}
        step()
        moved = [name for name, tensor in held.items() if not torch.equal(tensor, before[name])]
        if moved or not any(name.startswith("exp_avg/") for name in held):
            sys.exit(f"{parallel}: training went on in {len(moved)} of {len(held)} tensors, {moved[:3]}")
        if all(torch.equal(p, before[f"param/{name}"]) for name, p in stage.wrapped.weights().items()):
            sys.exit(f"{parallel}: the second step moved nothing")
    finally:
        stream.close()
        session.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
