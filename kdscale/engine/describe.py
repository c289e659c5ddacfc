"""A recipe in words and numbers: steps, batches, rates, parameters of every part, what is trained and what is frozen."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..data import Plan, open_split
from ..errors import DataError
from ..networks import FrozenNetwork
from ..recipe import Data, FromPhase, Model, Phase, Recipe
from ..recipe.method import kind_of
from ..recipe.resolve import digest, phase_data
from ..recipe.text import to_plain
from ..tasks import task_of
from ..types import Context, DatasetInfo, World
from .stage import build_source, phase_plan

# Sizes of the sets that the shipped recipes name, so that a recipe can be shown where its data are not.
PUBLISHED = {"imagenet": (1_281_167, 1000), "cifar100": (50_000, 100)}


def describe(recipe: Recipe, ranks: int) -> Iterator[str]:
    """Lines about a resolved recipe. Networks are built with random weights: nothing is downloaded."""
    yield f"recipe {digest(to_plain(recipe))[:12]}  seed {recipe.seed}  precision {recipe.precision}" + (
        f"  EMA {recipe.ema.decay}" if recipe.ema else ""
    )
    for number in range(len(recipe.phases)):
        yield from _phase(recipe, number, ranks)


def _phase(recipe: Recipe, number: int, ranks: int) -> Iterator[str]:
    phase = recipe.phases[number]
    data = phase_data(phase)
    info, plan, note = _data(phase, data)
    length = f"{phase.epochs:g} epochs" if phase.epochs else f"{phase.steps} steps"
    yield f"phase {number + 1} {phase.name}: {kind_of(phase.method)}, {length}{note}"
    if plan is not None:
        share = data.batch // (ranks * recipe.machine.accumulate)
        yield f"  {plan.total_steps} steps of {data.batch} images ({share} a rank and micro-batch on {ranks} x {recipe.machine.accumulate})"
    optimizer, schedule = phase.optimizer, phase.schedule
    yield f"  {optimizer.kind} lr {optimizer.lr:g} decay {optimizer.decay:g}, {schedule.kind}" + (
        f" after {schedule.warmup:g} epochs of warm-up" if schedule.warmup else ""
    )
    yield from _networks(recipe, number, info)


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
    trained = phase.method.needs().trained
    built = {}
    for role, source in phase.networks.items():
        built[role] = build_source(recipe, number, role, source, info, None, trained=role in trained, load=False)
    world = World(0, 1, lambda t: t, lambda t: t.detach())
    context = Context(built, info, world, task_of(recipe), phase, recipe.seed, "fp32", torch.device("cpu"))
    distiller = phase.method.build(context)  # type: ignore[attr-defined]
    for part, module in distiller.parts().items():
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        name = next((f" ({n.name})" for n in built.values() if n is module), "")
        yield f"  trained {part}{name}: {count:,} parameters"
    for role, network in built.items():
        if isinstance(network, FrozenNetwork):
            source = phase.networks[role]
            where = f" of phase {source.phase}, {source.at}" if isinstance(source, FromPhase) else ""
            shown = source.name if isinstance(source, Model) else network.name
            yield f"  frozen {role} ({shown}{where}): {sum(p.numel() for p in network.parameters()):,} parameters"
