"""`kdscale bench step`: what the engine adds to a training step, as a ratio to the same step written by hand.

Both sides hold the same networks with the same weights and get the same batches, in pairs whose order alternates; the first
pairs are not counted. Data are left out on both sides (they are made once): the stream is measured by itself.
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

from kdscale.benchmarks.handwritten import ByHand
from kdscale.engine.faults import Signals
from kdscale.engine.folder import Folder
from kdscale.engine.keeper import Memory
from kdscale.engine.loop import Loop
from kdscale.engine.meter import Meter
from kdscale.engine.optim import build_optimizer, parameter_groups
from kdscale.engine.parallel import Session
from kdscale.engine.reporter import Silent
from kdscale.engine.stage import Stage, build_stage, student_of
from kdscale.engine.upkeep import Upkeep
from kdscale.errors import RecipeError
from kdscale.recipe import Checkpointing, Evaluation, FromPhase, Recipe, resolve
from kdscale.recipe.method import kind_of

WARM, KEPT = 5, 4  # pairs not counted; different batches


def compare(recipe: Recipe, session: Session, pairs: int) -> Iterator[str]:
    """Lines with the median ratio, its spread, and milliseconds of both. The last phase of the recipe is measured."""
    recipe = endless(resolve(recipe))
    number = len(recipe.phases) - 1
    if session.size > 1:
        raise RecipeError("bench step measures one process: start it without a launcher")
    with tempfile.TemporaryDirectory() as folder:
        stage = build_stage(recipe, number, session, None)
        engine, rival = engine_step(stage, Path(folder)), hand_step(stage)
        batches = some_batches(stage)
        ratios, ours, theirs = interleaved(engine, rival, batches, pairs, session.device)
    quartiles = statistics.quantiles(ratios, n=4)
    yield f"{stage.phase.name} ({kind_of(stage.phase.method)}) batch {stage.plan.batch} on {session.device}, {torch.get_num_threads()} threads"
    yield f"engine {1000 * statistics.median(ours):.1f} ms, by hand {1000 * statistics.median(theirs):.1f} ms a step (medians of {pairs} pairs)"
    yield f"ratio engine / by hand: median {statistics.median(ratios):.3f}, quartiles {quartiles[0]:.3f} .. {quartiles[2]:.3f}"


def endless(recipe: Recipe) -> Recipe:
    """The recipe without evaluations and saves, and long enough; earlier phases' networks become random ones."""
    last = recipe.phases[-1]
    networks = {role: origin_of(recipe, source) for role, source in last.networks.items()}
    phase = replace(last, epochs=None, steps=10**6, networks=networks)
    return replace(
        recipe,
        phases=(*recipe.phases[:-1], phase),
        evaluation=Evaluation(every=1e9, teachers=False),
        checkpointing=Checkpointing(every_epochs=None, every_steps=10**7),
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


def hand_step(stage: Stage) -> Callable[[int, Any], None]:
    """The rival, on copies of the same networks and a second optimizer of the same kind."""
    method = stage.phase.method
    distiller = copy.deepcopy(stage.distiller)
    student = student_of(distiller)
    groups = parameter_groups(distiller, distiller.parts(), stage.phase.optimizer)  # type: ignore[operator]
    optimizer = build_optimizer(groups, stage.phase.optimizer)
    teacher = stage.frozen.get("teacher")
    head = next((part for name, part in distiller.parts().items() if name != "student"), None)  # type: ignore[operator]
    key = torch.zeros((), dtype=torch.int64, device=stage.session.device)
    hand = ByHand(
        Plain(student, key),
        None if teacher is None else (lambda images: teacher(images).logits),
        head,
        optimizer,
        stage.recipe.precision == "bf16",
    )  # type: ignore[arg-type]
    hand.student.train()
    return lambda step, batch: hand.step(method, batch, stage.phase.optimizer.lr)


class Plain(torch.nn.Module):
    """A network's body under the few names that the hand-written step uses."""

    def __init__(self, network: Any, key: torch.Tensor) -> None:
        super().__init__()
        self.network, self.key = network, key

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.network.set_noise(self.key, torch.arange(len(images), device=images.device))
        return self.network.body(images)  # type: ignore[no-any-return]

    def two(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.network.set_noise(self.key, torch.arange(len(images), device=images.device))
        said = self.network(images)
        return said.heads["class"], said.heads["distillation"]

    def pooled(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        said = self.network(images, ("pooled",))
        return said.logits, said.taps["pooled"]


def interleaved(
    engine: Callable[[int, Any], None], rival: Callable[[int, Any], None], batches: list[Any], pairs: int, device: torch.device
) -> tuple[list[float], list[float], list[float]]:
    ratios, ours, theirs = [], [], []
    for pair in range(WARM + pairs):
        batch = batches[pair % len(batches)]
        sides = [(engine, ours), (rival, theirs)]
        for side, times in sides if pair % 2 else sides[::-1]:
            started = time.perf_counter()
            side(pair, batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        ratios.append(ours[-1] / theirs[-1])
    return ratios[WARM:], ours[WARM:], theirs[WARM:]
