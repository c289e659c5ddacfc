"""A phase's networks and distiller from the recipe alone: random weights, no data, and teachers that are still to be trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.sources import build_source, fresh_network
from ..engine.stage import student_of
from ..engine.stored.store import Present
from ..engine.trained import own_role
from ..networks import FrozenNetwork, Network, read_upto, synchronise
from ..networks.sources import is_missing
from ..recipe import FromPhase, Model, Phase, Recipe, Stored, resolve
from ..recipe.load import load
from ..recipe.networks import Source
from ..recipe.resolve import phase_data
from ..tasks import task_of
from ..types import Batch, Context, DatasetInfo, Outputs, Progress, World

Gather = Callable[[Tensor], Tensor]
MOMENTS = 200  # of a phase, at which its method is asked who speaks


@dataclass(frozen=True, slots=True)
class Built:
    """``shares``: role -> part of the steps in which it speaks; ``progress``: a moment at which the most of them do, and
    ``speakers``: those that do then."""

    distiller: nn.Module
    frozen: dict[str, FrozenNetwork]
    shares: dict[str, float]
    progress: Progress
    speakers: tuple[str, ...]
    say: Callable[[str, Tensor], Outputs]
    info: DatasetInfo
    mixed: bool
    views: int

    @property
    def student(self) -> Network:
        return student_of(self.distiller)

    def batch(self, size: int, device: torch.device) -> Batch:
        """Images of noise, laid out as the stream's, with everything that a batch of this phase has."""
        side = self.info.size
        shape = (size, side, side, 3) if self.views == 1 else (size, self.views, side, side, 3)
        numbers = torch.arange(size, device=device)
        targets = torch.full((size, self.info.classes), 1 / self.info.classes, device=device) if self.mixed else None
        labels, repeats = numbers % self.info.classes, torch.zeros_like(numbers)
        index = numbers % self.info.samples
        normalisation = (self.info.mean, self.info.std)
        images = torch.randn(shape, device=device).movedim(-1, -3)
        return Batch(images, normalisation, labels, targets, index, numbers, repeats, numbers >= 0)


def standing_in(recipe: Recipe) -> Recipe:
    """The resolved recipe with the architecture of each teacher that another recipe is to train in its folder's place."""
    phases = tuple(
        replace(phase, networks={role: _standing_in(source) for role, source in phase.networks.items()})
        for phase in recipe.phases
    )
    return replace(recipe, phases=phases)


def _standing_in(source: Source) -> Source:
    if not isinstance(source, Model) or source.made_by is None or not is_missing(source):
        return source
    made = resolve(load(source.made_by))
    last = made.phases[-1]
    found = last.networks[own_role(last)]
    while isinstance(found, FromPhase):
        found = made.phases[made.phase_number(found.phase)].networks[found.role]
    return replace(found, weights="random") if isinstance(found, Model) else source


def build(
    recipe: Recipe, number: int, info: DatasetInfo, epochs: float, ranks: int, gather: Gather, device: torch.device
) -> Built:
    """Phase ``number`` of a resolved recipe in a world of ``ranks``, on ``device``; ``gather`` stands for the exchange of rows."""
    phase = recipe.phases[number]
    needs, data = phase.method.needs(), phase_data(phase)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        networks = _networks(recipe, number, info)
        world = World(0, ranks, gather, lambda t: t.detach().clone())
        fresh = partial(fresh_network, recipe, number, info)
        context = Context(networks, fresh, info, world, task_of(recipe), phase, recipe.seed, recipe.precision, device)
        distiller: nn.Module = phase.method.build(context)  # type: ignore[attr-defined]
    if recipe.batch_norm == "sync":
        synchronise(distiller, world)
    frozen = {role: network for role, network in networks.items() if isinstance(network, FrozenNetwork)}
    shares, (speakers, progress) = _speakers(phase.method, number, epochs)
    mixed = bool(data.train.mixup or data.train.cutmix or data.train.smoothing)
    say = partial(_say, frozen, needs.taps, phase.method.reads(networks), info.classes)
    return Built(distiller.train(), frozen, shares, progress, speakers, say, info, mixed, needs.views)


def _speakers(method: Any, number: int, epochs: float) -> tuple[dict[str, float], tuple[tuple[str, ...], Progress]]:
    moments = [Progress(number, step, step, epochs * step / MOMENTS, epochs) for step in range(MOMENTS)]
    asked = [method.asks(moment) for moment in moments]
    roles = dict.fromkeys(role for roles in asked for role in roles)
    shares = {role: sum(role in roles for roles in asked) / MOMENTS for role in roles}
    return shares, max(zip(asked, moments, strict=True), key=lambda pair: len(pair[0]))


def _networks(recipe: Recipe, number: int, info: DatasetInfo) -> Present:
    """Those of a phase by role, without weights; two frozen roles with one source share one copy, as in a run."""
    phase: Phase = recipe.phases[number]
    needs, shared = phase.method.needs(), dict[Source, Network]()
    built = Present(phase)
    for role, source in phase.networks.items():
        if role in needs.drawn or isinstance(source, Stored):
            continue
        trained = role in needs.trained
        if trained or source not in shared:
            built[role] = build_source(recipe, number, role, source, info, None, trained=trained, load=False)
        else:
            built[role] = shared[source]
        if not trained:
            shared[source] = built[role]
    built.refuse_readers()
    return built


def _say(frozen: Mapping[str, FrozenNetwork], taps: Any, places: Any, classes: int, role: str, images: Tensor) -> Outputs:
    """What a frozen network says; in the place of stored answers, any."""
    if role not in frozen:
        return Outputs(torch.zeros(len(images), classes, device=images.device))
    network = frozen[role]
    if places.get(role):
        return read_upto(network, images, places[role])
    said: Outputs = network(images, network.expanded(taps.get(role, ())))
    return said
