"""A recipe in words and numbers: steps, batches, rates, parameters of every part, what is trained and what is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from ..data import Plan, check_batch, open_split
from ..errors import DataError, NetworkError
from ..networks import FrozenNetwork, Network
from ..recipe import Data, FromPhase, Phase, Recipe, Stored, resolve
from ..recipe.method import kind_of
from ..recipe.optim import Cosine, MultiStep, Optimizer, Plateau, Schedule
from ..recipe.resolve import digest, phase_data
from ..recipe.text import to_plain
from ..tasks import task_of
from ..types import Context, DatasetInfo, World
from .imagined import Unimaginable, imagined
from .schedule import TRAINING
from .sources import build_source, fresh_network
from .stage import answer_names, phase_plan
from .start import check_best
from .stored.store import Present

# Sizes of the sets that the shipped recipes name, so that a recipe can be shown where its data are not.
PUBLISHED = {"imagenet": (1_281_167, 1000), "cifar100": (50_000, 100)}


def describe(recipe: Recipe, ranks: int) -> Iterator[str]:
    """Lines about a recipe. Networks are imagined: nothing is downloaded, a teacher may be elsewhere, and no memory is taken.

    Raises KdscaleError for what no run of this recipe could begin with: a batch that does not divide, a student that does not fit.
    """
    asked, recipe = recipe, resolve(recipe)
    yield f"recipe {digest(to_plain(recipe))[:12]}  seed {recipe.seed}  precision {recipe.precision}" + (
        f"  EMA {recipe.ema.decay}" if recipe.ema else ""
    )
    as_asked = asked.phases if len(asked.phases) == len(recipe.phases) else recipe.phases
    for number, phase in enumerate(recipe.phases):
        info, plan, note = _data(phase, phase_data(phase))
        yield f"phase {number + 1} {phase.name}: {kind_of(phase.method)}, {_length(phase)}{note}"
        if plan is not None:
            yield _batches(plan, ranks, recipe.machine.accumulate)
        yield _rates(phase, as_asked[number].optimizer)
        yield from _built(recipe, number, info)


def _built(recipe: Recipe, number: int, info: DatasetInfo) -> list[str]:
    """A method of one's own may ask its networks for numbers while it is built; then they are real, with random weights."""
    try:
        with imagined(info):
            return list(_networks(recipe, number, info))
    except Unimaginable:
        return list(_networks(recipe, number, info))


def _length(phase: Phase) -> str:
    limit = "at most " if isinstance(phase.schedule, Plateau) and phase.schedule.stops else ""
    return limit + (f"{phase.epochs:g} epochs" if phase.epochs else f"{phase.steps} steps")


def _batches(plan: Plan, ranks: int, accumulate: int) -> str:
    check_batch(plan, ranks, accumulate)
    share = plan.batch // (ranks * accumulate)
    return f"  {plan.total_steps} steps of {plan.batch} images ({share} a rank and micro-batch on {ranks} x {accumulate})"


def _rates(phase: Phase, asked: Optimizer) -> str:
    """The resolved rate, and the one that the recipe states for another batch; the schedule's own numbers."""
    optimizer = phase.optimizer
    stated = f" ({asked.lr:g} per {asked.per} images)" if asked.per else ""
    clipped = f" clip {optimizer.clip:g}" if optimizer.clip else ""
    parts = "".join(f", {name} at {part.lr:g} x the rate" for name, part in optimizer.parts.items())
    warm = f" after {phase.schedule.warmup:g} epochs of warm-up" if phase.schedule.warmup else ""
    return f"  {optimizer.kind} lr {optimizer.lr:g}{stated} decay {optimizer.decay:g}{clipped}, {_curve(phase.schedule)}{warm}{parts}"


def _curve(schedule: Schedule) -> str:
    if isinstance(schedule, Cosine):
        return f"cosine to {schedule.end:g}"
    if isinstance(schedule, MultiStep):
        return (
            f"multistep x {schedule.factor:g} after epochs {', '.join(f'{m - schedule.offset:g}' for m in schedule.milestones)}"
        )
    if isinstance(schedule, Plateau):
        end = f", ends at {schedule.end:g}" if schedule.stops else ""
        records = "epochs" if schedule.metric == TRAINING else "evaluations"
        waited = f"{schedule.patience + 1} {records} without a better {schedule.metric}"
        return f"plateau x {schedule.factor:g} after {waited}{end}"
    return schedule.kind


def _data(phase: Phase, data: Data) -> tuple[DatasetInfo, Plan | None, str]:
    try:
        split = open_split(data, "train")
        return split.info, phase_plan(phase, split), f" on {split.info.samples} images, {split.info.classes} classes"
    except DataError:
        samples, classes = PUBLISHED.get(data.source, (0, 1000))
        zero = (0.0, 0.0, 0.0)
        info = DatasetInfo("", samples, classes, None, data.mean or zero, data.std or (1.0, 1.0, 1.0), data.train.size)
        if not samples:
            return info, None, f" (data {data.source!r} are not here: the number of steps is not known; 1000 classes assumed)"
        from ..data import plan

        made = plan(data, samples, phase.epochs, phase.steps)
        return info, made, f" on {samples} images, {classes} classes (as published: the data are not here)"


def _networks(recipe: Recipe, number: int, info: DatasetInfo) -> Iterator[str]:
    phase = recipe.phases[number]
    needs = phase.method.needs()
    trained = needs.trained
    built = Present(phase)
    absent: dict[str, NetworkError] = {}
    for role, source in phase.networks.items():
        if role in needs.drawn:
            yield f"  drawn   {role} ({_named(phase, role)}): its architecture alone, with fresh weights"
            continue
        if isinstance(source, Stored):
            yield f"  stored  {role} ({_named(phase, role)}): its answers, in place of the network"
            continue
        try:
            built[role] = build_source(recipe, number, role, source, info, None, trained=role in trained, load=False)
        except NetworkError as error:
            if role in trained:
                raise
            absent[role] = error
    for part, module in _parts(recipe, phase, built, info).items() if not absent else built.items():
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        name = next((f"{role} ({n.name})" for role, n in built.items() if n is module), part)
        if not isinstance(module, FrozenNetwork):
            yield f"  trained {name}: {count:,} parameters"
    for role, network in built.items():
        if not absent and role in trained and not any(p.requires_grad for p in network.parameters()):
            yield f"  held    {role} ({network.name}): not trained in this phase"
    for role, network in built.items():
        if isinstance(network, FrozenNetwork):
            yield f"  frozen {role} ({_named(phase, role)}): {sum(p.numel() for p in network.parameters()):,} parameters"
    for role, missing in absent.items():
        yield f"  frozen {role} ({_named(phase, role)}): not to be had here ({missing}), so parts beside the networks are not counted"


def _named(phase: Phase, role: str) -> str:
    source = phase.networks[role]
    return f"{source.role} of phase {source.phase}, {source.at}" if isinstance(source, FromPhase) else source.name


def _parts(recipe: Recipe, phase: Phase, built: dict[str, Network], info: DatasetInfo) -> dict[str, nn.Module]:
    world = World(0, 1, lambda t: t, lambda t: t.detach())
    number = recipe.phases.index(phase)
    fresh = partial(fresh_network, recipe, number, info)
    context = Context(built, fresh, info, world, task_of(recipe), phase, recipe.seed, "fp32", torch.device("cpu"))
    distiller = phase.method.build(context)  # type: ignore[attr-defined]
    if recipe.evaluation.best_of != "student":  # which nearly every method has
        check_best(recipe, number, answer_names(recipe, distiller, info, torch.device("cpu")))
    parts: dict[str, nn.Module] = distiller.parts()
    return parts
