"""Every preflight of a recipe, and one timed step: what the whole run would take, before it is queued. Nothing is kept."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch

from ..errors import KdscaleError
from ..networks import foreign_noise
from ..recipe import FromPhase, Recipe, resolve
from .describe import describe
from .idle import look_for_idle
from .keeper import statistic_names
from .meter import Meter
from .parallel import Session
from .reporter import duration
from .stage import Stage, build_stage
from .start import agree_on_start, check_names, judge_teachers

WARM, TIMED = 1, 2
SMALL = 64  # images from which a BatchNorm's own statistics are taken to be good enough


def check(recipe: Recipe, session: Session, say: Callable[[str], None]) -> None:
    """Raises the KdscaleError that a run would end with. A phase that takes networks of an earlier one is timed on random weights."""
    for line in describe(recipe, session.size):
        say(line)
    recipe = resolve(recipe)
    total = 0.0
    for number, phase in enumerate(recipe.phases):
        stage = build_stage(recipe, number, session, None)
        agree_on_start(stage)
        check_names(stage)
        for text in stage.warnings:
            say(f"warning: {text}")
        for text in notes(stage):
            say(f"note: {text}")
        if not any(isinstance(source, FromPhase) for source in phase.networks.values()):
            judge_teachers(stage, _Saying(say))
        seconds, waited = timed_step(stage, say)
        whole = seconds * stage.plan.total_steps
        total += whole
        say(
            f"phase {phase.name}: {seconds:.3f} s a step ({100 * waited:.0f} % waiting for data), {stage.plan.batch / seconds:.0f} images/s:"
            f" {stage.plan.total_steps} steps take about {duration(whole)} without evaluation"
        )
        stage.wrapped.release()
    say(
        f"the whole run: about {duration(total)} on {session.size} x {session.device}; peak memory {_memory(session):.1f} GiB a rank"
    )


def notes(stage: Stage) -> list[str]:
    """What makes ranks or accumulation more than a detail for this phase."""
    said = []
    for role, network in stage.trained.items():
        drawn = foreign_noise(network)
        if drawn:
            said.append(
                f"{role} draws by {', '.join(drawn)} from a generator of its own: its noise depends on the number of ranks"
            )
    ranks, rows = stage.session.size, stage.plan.batch // (stage.session.size * stage.recipe.machine.accumulate)
    if ranks > 1 and stage.recipe.batch_norm == "local" and rows < SMALL and statistic_names(stage.distiller):
        said.append(f"each BatchNorm sees {rows} images of its own rank: below {SMALL} batch_norm=sync is the safer choice")
    if stage.phase.method.needs().couples == "micro-batch":
        said.append("the method couples the samples of a micro-batch: accumulation changes the curve")
    return said


class _Saying:
    """A reporter that only says."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def timed_step(stage: Stage, say: Callable[[str], None]) -> tuple[float, float]:
    """(seconds a step, share of them without data) of a few steps from the start of the phase. Raises KdscaleError for a loss
    that is not finite."""
    stage.distiller.train()
    stream, meter = stage.stream(), Meter(stage.session)
    count = min(WARM + TIMED, stage.plan.total_steps)
    try:
        batches = stream.batches(0)
        for step in range(count):
            if step == min(WARM, count - 1):
                _wait(stage)
                began, meter.waited = time.perf_counter(), 0.0
            progress = stage.progress(step)
            stage.begin_step(progress, [])
            asked = time.perf_counter()
            micro = [next(batches) for _ in range(stage.recipe.machine.accumulate)]
            meter.waited += time.perf_counter() - asked
            for number, batch in enumerate(micro):
                stage.begin_micro_batch(progress, number)
                taught = stage.teach(batch, progress)
                losses = stage.wrapped.accumulate(batch, taught, 1 / len(micro), number == len(micro) - 1)
                meter.add(losses)
            if step == 0:
                look_for_idle(stage, say)
            stage.wrapped.update(stage.phase.optimizer.clip)
            stage.distiller.after_step(progress)  # type: ignore[operator]
        _wait(stage)
        seconds = time.perf_counter() - began
    finally:
        stream.close()
    losses_text = {name: float(v.detach()) for name, v in losses.items()}
    if not all(map(_finite, losses_text.values())):
        raise KdscaleError(f"phase {stage.phase.name!r}: a loss of the first steps is not finite: {losses_text}")
    return seconds / max(1, count - min(WARM, count - 1)), meter.waited / seconds


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _wait(stage: Stage) -> None:
    if stage.session.device.type == "cuda":
        torch.cuda.synchronize()


def _memory(session: Session) -> float:
    if session.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
