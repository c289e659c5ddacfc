"""A recipe cut to a few steps, and how one process and many can run it alike, so that their losses may be compared.

The samples of a global batch are dealt by their place, so one process that accumulates over as many micro-batches as all ranks
together have meets the very same ones: it is comparable with the recipe's own BatchNorm and within the same memory. Where a
micro-batch counts as a whole over the ranks (a loss that couples its samples, synchronised BatchNorm, running statistics that a
later phase builds on), both sides take the global batch in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from ...data import check_batch, open_split
from ...errors import DataError
from ...networks import Network, foreign_noise
from ...recipe import AdamW, Checkpointing, FromPhase, MultiStep, Phase, Recipe, resolve
from ...recipe.networks import Source
from ...recipe.optim import Schedule
from ...recipe.resolve import phase_data
from ..sources import build_source
from ..stage import phase_plan

LEAST_EPS = 1e-4  # least eps of AdamW: below it Adam makes whole steps of the rounding of gradients near zero
FASTEST_AVERAGE = 0.9  # decay of an EMA: a slower one would hardly have moved in so few steps


@dataclass(frozen=True)
class Terms:
    """How the runs are made comparable. ``alone``: micro-batches a step of the one process; None: it cannot be compared."""

    ranks: int
    accumulate: int  # of each of the ranks
    alone: int | None
    batch_norm: str
    notes: tuple[str, ...] = ()


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """``recipe``, resolved, with at most ``steps`` steps a phase, its curves of rates drawn together to that length, AdamW's eps at least 1e-4.

    Every step is logged; nothing is saved but ends, teachers are not measured, and networks of earlier phases are their last.
    """
    recipe = resolve(recipe)
    return replace(
        recipe,
        networks={role: _last(source) for role, source in recipe.networks.items()},
        phases=tuple(_short(phase, steps) for phase in recipe.phases),
        ema=recipe.ema and replace(recipe.ema, decay=min(recipe.ema.decay, FASTEST_AVERAGE)),
        evaluation=replace(recipe.evaluation, every=1e9, teachers=False),
        checkpointing=Checkpointing(every_epochs=None, keep=1),
        machine=replace(recipe.machine, log_every=1, trackers=()),
    )


def _short(phase: Phase, steps: int) -> Phase:
    split = open_split(phase_data(phase), "train")
    plan = phase_plan(phase, split)
    short = replace(phase, epochs=None, steps=min(steps, plan.total_steps))
    share = phase_plan(short, split).epochs / plan.epochs
    optimizer = phase.optimizer
    if isinstance(optimizer, AdamW):
        optimizer = replace(optimizer, eps=max(optimizer.eps, LEAST_EPS))
    return replace(
        short,
        optimizer=optimizer,
        networks={role: _last(source) for role, source in phase.networks.items()},
        data=replace(phase_data(phase), held_out=0),
        schedule=_drawn_together(phase.schedule, share),
    )


def _last(source: Source) -> Source:
    return replace(source, at="end", floor=0.0) if isinstance(source, FromPhase) else source


def _drawn_together(schedule: Schedule, share: float) -> Schedule:
    lengths = {name: getattr(schedule, name, None) for name in ("warmup", "offset", "total")}
    changes: dict[str, Any] = {name: length * share for name, length in lengths.items() if length is not None}
    if isinstance(schedule, MultiStep):
        changes["milestones"] = tuple(milestone * share for milestone in schedule.milestones)
    return replace(schedule, **changes)


def terms(recipe: Recipe, ranks: int) -> Terms:
    """``recipe``: shortened. Raises DataError where its batch cannot be dealt to ``ranks``."""
    asked = recipe.machine.accumulate
    if ranks == 1:
        accumulate = _dealt(recipe, 1, asked)
        return Terms(1, accumulate, accumulate, recipe.batch_norm)
    drawing = sorted(set(_drawing(recipe)))
    if drawing:
        said = f"{'; '.join(drawing)}: its noise depends on the number of ranks, so one process is not compared with {ranks}"
        return Terms(ranks, _dealt(recipe, ranks, asked), None, recipe.batch_norm, (said,))
    why = next(_reasons_for_one(recipe), None)
    if why is not None:
        check_all(recipe, ranks, 1)
        said = f"{why}: every step is one micro-batch over all ranks, with batch_norm=sync and without accumulation"
        return Terms(ranks, 1, 1, "sync", (said,))
    accumulate = _dealt(recipe, ranks, asked)
    notes = () if accumulate > 1 else ("the batch allows no accumulation, so none is tried",)
    return Terms(ranks, accumulate, accumulate * ranks, recipe.batch_norm, notes)


def _reasons_for_one(recipe: Recipe) -> Iterator[str]:
    """Why the micro-batches of a step, and not their samples alone, make the curve."""
    if recipe.batch_norm == "sync":
        yield "batch_norm is sync"
    for number, phase in enumerate(recipe.phases):
        if phase.method.needs().couples == "micro-batch":
            yield f"phase {phase.name} couples the samples of a micro-batch"
        if phase.carry or any(
            isinstance(source, FromPhase) and _normalised(recipe, number, role) for role, source in phase.networks.items()
        ):
            yield f"phase {phase.name} goes on from an earlier one's BatchNorm, whose statistics follow the micro-batches"


def _normalised(recipe: Recipe, number: int, role: str) -> bool:
    return any(isinstance(module, _BatchNorm) for module in _built(recipe, number, role).modules())


def _built(recipe: Recipe, number: int, role: str) -> Network:
    """The architecture that plays ``role``."""
    phase = recipe.phases[number]
    info = open_split(phase_data(phase), "train").info
    return build_source(recipe, number, role, phase.networks[role], info, None, trained=True, load=False)


def _dealt(recipe: Recipe, ranks: int, asked: int) -> int:
    """Micro-batches a step: as asked, else two where the batch allows."""
    for accumulate in [asked] if asked > 1 else [2]:
        try:
            check_all(recipe, ranks, accumulate)
        except DataError:
            continue
        return accumulate
    check_all(recipe, ranks, 1)
    return 1


def check_all(recipe: Recipe, ranks: int, accumulate: int) -> None:
    for phase in recipe.phases:
        check_batch(phase_plan(phase, open_split(phase_data(phase), "train")), ranks, accumulate)


def _drawing(recipe: Recipe) -> Iterator[str]:
    for number, phase in enumerate(recipe.phases):
        for role in phase.method.needs().trained:
            drawn = foreign_noise(_built(recipe, number, role))
            if drawn:
                yield f"{role} draws by {', '.join(drawn)} from a generator of its own"
