"""`kdscale bench step`: what the engine adds to a training step, as a ratio to the same step written by hand.

Both sides hold the same networks with the same weights and get the same batches, in pairs whose order alternates; the first
pairs are not counted. Clipping and EMA are done on both sides, and the first losses must agree before anything is timed. Data
(made once), schedule, evaluations and saves are left out on both: the stream is measured by itself.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdscale.benchmarks.handwritten import ByHand, Student, refuse_strange
from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.faults.signals import Signals
from kdscale.engine.keeper import Memory
from kdscale.engine.loop import Loop
from kdscale.engine.meter import Meter
from kdscale.engine.optim import build_optimizer, parameter_groups
from kdscale.engine.parallel import Session
from kdscale.engine.reporter import Silent
from kdscale.engine.stage import Stage, build_stage, student_of
from kdscale.engine.upkeep import Upkeep
from kdscale.errors import KdscaleError, RecipeError
from kdscale.recipe import Checkpointing, Constant, Evaluation, FromPhase, Recipe, Stored, resolve
from kdscale.recipe.method import kind_of

WARM, KEPT = 5, 4  # pairs not counted; different batches
TOLERANCE = 1e-4  # of the loss: rounding of float32 in another order


def compare(recipe: Recipe, session: Session, pairs: int) -> Iterator[str]:
    """Lines with the median ratio, its spread, and milliseconds of both. The last phase of the recipe is measured.

    Raises RecipeError for what has no twin by hand, KdscaleError where the two sides do not compute the same loss.
    """
    recipe = endless(resolve(recipe))
    refuse(recipe, session)
    if recipe.machine.threads:
        torch.set_num_threads(recipe.machine.threads)
    with tempfile.TemporaryDirectory() as folder:
        stage = build_stage(recipe, len(recipe.phases) - 1, session, None)
        rival = rival_of(stage)
        engine = engine_step(stage, Path(folder))
        batches = some_batches(stage)
        same_losses(stage, rival, batches[0])
        ratios, ours, theirs = interleaved(engine, lambda _, batch: rival.step(batch), batches, pairs, session.device)
    quartiles = statistics.quantiles(ratios, n=4)
    yield f"{stage.phase.name} ({kind_of(stage.phase.method)}) batch {stage.plan.batch} on {session.device}, threads {torch.get_num_threads()}"
    yield f"engine {1000 * statistics.median(ours):.1f} ms, by hand {1000 * statistics.median(theirs):.1f} ms a step (medians of {pairs} pairs)"
    yield f"ratio engine / by hand: median {statistics.median(ratios):.3f}, quartiles {quartiles[0]:.3f} .. {quartiles[2]:.3f}"


def refuse(recipe: Recipe, session: Session) -> None:
    """Raises RecipeError for what the rival does not do, so that both sides do the same work."""
    if session.size > 1:
        raise RecipeError("bench step measures one process: start it without a launcher")
    machine, phase = recipe.machine, recipe.phases[-1]
    if machine.accumulate > 1:
        raise RecipeError(
            f"bench step measures steps of one batch, and machine.accumulate is {machine.accumulate}: set machine.accumulate=1"
        )
    if machine.compile:
        raise RecipeError("bench step measures uncompiled networks, and machine.compile is true: set machine.compile=false")
    stored = [role for role, source in phase.networks.items() if isinstance(source, Stored)]
    if stored:
        raise RecipeError(f"bench step runs the teacher by hand too, and {stored[0]} is a store: networks.{stored[0]}=NAME")
    refuse_strange(phase.method)


def endless(recipe: Recipe) -> Recipe:
    """The recipe without evaluations, saves and a schedule, and long enough; earlier phases' networks become random ones."""
    last = recipe.phases[-1]
    networks = {role: origin_of(recipe, source) for role, source in last.networks.items()}
    phase = replace(last, epochs=None, steps=10**6, networks=networks, schedule=Constant(), carry=())
    return replace(
        recipe,
        phases=(*recipe.phases[:-1], phase),
        evaluation=Evaluation(every=1e9, teachers=False),
        checkpointing=Checkpointing(every_epochs=None, every_steps=10**7),
        nonfinite="stop",
    )


def origin_of(recipe: Recipe, source: Any) -> Any:
    while isinstance(source, FromPhase):
        source = recipe.phases[recipe.phase_number(source.phase)].networks[source.role]
    return replace(source, weights="random")


def some_batches(stage: Stage) -> list[Any]:
    stream = stage.stream()
    try:
        return list(itertools.islice(stream.batches(0), KEPT))
    finally:
        stream.close()


def engine_step(stage: Stage, folder: Path) -> Callable[[int, Any], None]:
    """One turn of the engine's own loop, with everything it does between two batches."""
    memory, meter = Memory(), Meter(stage.session)
    upkeep = Upkeep(stage, memory, meter, Folder(folder), Silent())
    loop = Loop(stage, memory, meter, Silent(), upkeep, Signals())
    stage.distiller.train()
    return lambda step, batch: loop.step(step, iter([batch]))


def rival_of(stage: Stage) -> ByHand:
    """The rival, on copies of the same networks and a second optimizer of the same kind."""
    recipe, value = stage.recipe, stage.phase.optimizer
    copied: Any = copy.deepcopy(stage.distiller)
    copied.train()
    optimizer = build_optimizer(parameter_groups(copied, copied.parts(), value), value)
    teacher = stage.frozen.get("teacher")
    key: Any = stage.distiller.noise_key  # the engine's own tensor: both sides draw the same masks
    return ByHand(
        stage.phase.method,
        Student(student_of(copied), key),
        None if teacher is None else (lambda images: teacher(images).logits),
        getattr(copied, "shadow", None),
        optimizer,
        clip=value.clip,
        ema=recipe.ema,
        bf16=recipe.precision == "bf16",
    )


@torch.no_grad()
def same_losses(stage: Stage, rival: ByHand, batch: Any) -> None:
    """Raises KdscaleError where the sides differ on one batch with the same weights: a ratio of different work says nothing."""
    stage.distiller.train()
    start = stage.progress(0)
    stage.begin_step(start, [])
    ours = sum(float(loss) for loss in stage.distiller(batch, stage.teach(batch, start)).values())
    theirs = float(rival.loss(batch))
    if not abs(ours - theirs) <= TOLERANCE * abs(ours):
        raise KdscaleError(
            f"the engine's first loss is {ours:.6g} and the hand-written one {theirs:.6g}: the two steps differ, so their times"
            f" are not compared; take another network or method ({kind_of(stage.phase.method)} was asked for)"
        )


def interleaved(
    engine: Callable[[int, Any], None], rival: Callable[[int, Any], None], batches: list[Any], pairs: int, device: torch.device
) -> tuple[list[float], list[float], list[float]]:
    synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    ratios: list[float] = []
    ours: list[float] = []
    theirs: list[float] = []
    for pair in range(WARM + pairs):
        batch = batches[pair % len(batches)]
        sides = [(engine, ours), (rival, theirs)]
        for side, times in sides if pair % 2 else sides[::-1]:
            synchronise()
            started = time.perf_counter()
            side(pair, batch)
            synchronise()
            times.append(time.perf_counter() - started)
        ratios.append(ours[-1] / theirs[-1])
    return ratios[WARM:], ours[WARM:], theirs[WARM:]
