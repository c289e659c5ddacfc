"""One phase of any method in this process: real shards, real stream, real optimizer, a few steps at a time.

Started by a launcher with the shards and a file as its words, it writes what each method's steps gave: ranks are then compared.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import Stage, build_stage
from kdscale.methods import Method
from kdscale.recipe import SGD, AdamW, FromPhase, Model, Phase, Recipe, resolve
from tests.engine import small
from tests.methods.cases import WHOLE, is_quick

DEIT = {**small.TINY, "depth": 3}  # three stages, as a fused head asks
STUDENTS = {"cnn": Model("wrn_16_1"), "token": Model("deit_tiny_distilled_patch16_224", drop_path=0.2, args=DEIT)}


def recipe_of(method: Method, kind: str, data: Path, **changes: Any) -> Recipe:
    """The method with its defaults, on noise with mixup and with drop-path where the student has it."""
    needs = method.needs()
    networks = dict.fromkeys((*needs.trained, *needs.drawn), STUDENTS[kind]) | {
        role: Model("wrn_16_2", floor=0) for role in needs.frozen
    }
    phase = Phase(method, epochs=60, name="phase", optimizer=AdamW(1e-3, clip=1.0))
    return resolve(small.recipe(data, networks=networks, phases=(phase,), **changes))


def stages(recipe: Recipe, session: Session) -> Iterator[Stage]:
    """The stage of each phase that a method expands to; networks of earlier phases are fresh ones."""
    for number, phase in enumerate(recipe.phases):
        networks = {role: origin(recipe, source) for role, source in phase.networks.items()}
        phases = (*recipe.phases[:number], replace(phase, networks=networks), *recipe.phases[number + 1 :])
        yield build_stage(replace(recipe, phases=phases), number, session, None)


def origin(recipe: Recipe, source: Any) -> Any:
    while isinstance(source, FromPhase):
        source = recipe.phases[recipe.phase_number(source.phase)].networks[source.role]
    return source


def run(stage: Stage, meter: Meter, first: int, count: int) -> list[dict[str, Any]]:
    """Steps ``first`` .. ``first + count - 1``: losses by name and the norm of the whole gradient, of each."""
    stage.distiller.train()
    stream, said = stage.stream(), []
    batches, accumulate = stream.batches(first), stage.recipe.machine.accumulate
    for step in range(first, first + count):
        progress = stage.progress(step)
        stage.begin_step(progress, [])
        for number, batch in enumerate(itertools.islice(batches, accumulate)):
            stage.begin_micro_batch(progress, number)
            meter.add(stage.wrapped.accumulate(batch, stage.teach(batch, progress), 1 / accumulate, number == accumulate - 1))
        norm = stage.wrapped.update(stage.phase.optimizer.clip, careful=True)
        stage.distiller.after_step(progress)  # type: ignore[operator]
        if stage.ema:
            stage.ema.update()
        said.append({"losses": meter.line()["losses"], "norm": float(norm)})
    stream.close()
    return said


def every_method(data: Path, session: Session) -> dict[str, Any]:
    """What two steps of each case of the fast tests gave. SGD: Adam turns the rounding of a gradient near zero into a step."""
    told = {}
    for name, (method, kind) in WHOLE.items():
        if not is_quick(method, kind):
            continue
        recipe = recipe_of(method, kind, data, batch_norm="sync")
        phases = tuple(replace(phase, optimizer=SGD(0.05, clip=1.0)) for phase in recipe.phases)
        for stage in stages(replace(recipe, phases=phases), session):
            said = run(stage, Meter(session), 0, 2)
            weights = {n: float(p.detach().double().sum()) for n, p in stage.distiller.named_parameters()}
            told[f"{name} {stage.number}"] = {"steps": said, "weights": weights}
            stage.wrapped.release()
    return told


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    session = connect()
    told = every_method(data, session)
    if session.main:
        out.write_text(json.dumps(told))
    session.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
