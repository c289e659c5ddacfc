"""A phase, made: its data, networks, distiller and optimizer, built afresh from the recipe and from what earlier phases left.

Nothing thaws or freezes while it is wrapped: a new phase is a new module that loads by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import keys
from ..data import Plan, Split, TrainStream, check_batch, check_reading, open_split, open_stream, plan
from ..errors import RecipeError
from ..networks import FrozenNetwork, Network, read_upto, synchronise
from ..recipe import Data, Phase, Recipe
from ..recipe.resolve import phase_data
from ..tasks import Task, task_of
from ..types import Batch, Context, DatasetInfo, Outputs, Progress, Taught
from .allocator import keep_freed_memory
from .checkpoint.folder import Folder
from .ema import Ema
from .optim import build_optimizer, parameter_groups, set_rates
from .parallel import Session, Wrapped, refuse_unfit, wrap
from .schedule import learning_rate
from .sources import build_networks, fresh_network, take_carried
from .stored.store import Store, open_stores
from .stored.stream import TAUGHT, StoredStream


@dataclass
class Stage:
    """What the loop needs of one phase."""

    recipe: Recipe
    number: int
    session: Session
    train_split: Split
    eval_split: Split
    plan: Plan
    task: Task
    frozen: dict[str, FrozenNetwork]
    trained: dict[str, Network]
    distiller: nn.Module
    groups: list[dict[str, Any]]
    answers: tuple[str, ...]  # names of what evaluations measure
    warnings: list[str] = field(default_factory=list)
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # a small evaluation split, once it was read
    _ema: Ema | None = field(default=None, init=False)

    @property
    def phase(self) -> Phase:
        return self.recipe.phases[self.number]

    @property
    def data(self) -> Data:
        return phase_data(self.phase)

    @property
    def seed(self) -> int:
        """Of this phase's order and augmentation."""
        return int(keys.key(self.recipe.seed, self.number))

    @cached_property
    def wrapped(self) -> Wrapped:
        """The distiller as the ranks hold it, from the first time that it is asked for."""
        micro = max(1, self.plan.batch // (self.session.size * self.recipe.machine.accumulate))
        value = self.phase.optimizer
        build = partial(build_optimizer, value=value)
        made = wrap(self.session, self.distiller, self.groups, build, clip=value.clip, batch=micro)
        if self.recipe.ema:  # now, from the weights before the first step
            self._ema = Ema(dict(student_of(self.distiller).named_parameters()), self.recipe.ema, made)
        return made

    @property
    def ema(self) -> Ema | None:
        """Of the student's weights as they lie on this rank."""
        return self._ema if self.wrapped else None

    def progress(self, step: int) -> Progress:
        return Progress(self.number, step, self.plan.position(step), self.plan.epoch(step), self.plan.epochs)

    @cached_property
    def stores(self) -> dict[str, Store]:
        """role -> answers of a frozen network that is not there."""
        return open_stores(self.recipe, self.number, self.train_split.info)

    def stream(self) -> TrainStream | StoredStream:
        stream = open_stream(
            self.train_split,
            self.data,
            self.plan,
            seed=self.seed,
            rank=self.session.rank,
            ranks=self.session.size,
            accumulate=self.recipe.machine.accumulate,
            device=self.session.device,
            classes=self.train_split.info.classes,
            workers=self.data.workers,
            local_ranks=self.session.local_size,
            views=self.phase.method.needs().views,
        )
        return StoredStream(stream, self.stores) if self.stores else stream

    def begin_step(self, progress: Progress, history: list[float]) -> float:
        """Clocks, seeds of foreign modules, rates; returns the base rate."""
        self.distiller.before_step(progress)  # type: ignore[operator]
        seed_foreign(self.recipe.seed, progress, self.session.rank)
        rate = learning_rate(self.phase.schedule, self.phase.optimizer.lr, progress, history)
        set_rates(self.wrapped.param_groups, self.groups, rate)
        return rate

    def begin_micro_batch(self, progress: Progress, number: int) -> None:
        """Tells the session which rank holds the first row of micro-batch ``number`` of the step at ``progress``."""
        ranks = self.session.size
        place = progress.position % (ranks * self.recipe.machine.accumulate)
        self.session.first = place % ranks if place // ranks == number else 0

    @cached_property
    def taps(self) -> dict[str, tuple[str, ...]]:
        """What each frozen network is asked for besides its logits."""
        asked = self.phase.method.needs().taps
        return {role: network.expanded(asked.get(role, ())) for role, network in self.frozen.items()}

    @cached_property
    def places(self) -> Mapping[str, tuple[str, ...]]:
        """Where the frozen networks are read that are not run to their end."""
        return self.phase.method.reads(self.trained | self.frozen)

    def teach(self, batch: Batch, progress: Progress) -> Taught:
        """What the frozen networks whose turn it is say of a batch."""
        stored: dict[str, Outputs] = batch.extra.get(TAUGHT, {})
        return {role: stored.get(role) or self._said(role, batch.images) for role in self.phase.method.asks(progress)}

    def _said(self, role: str, images: torch.Tensor) -> Outputs:
        network, places = self.frozen[role], self.places.get(role)
        said: Outputs = read_upto(network, images, places) if places else network(images, self.taps[role])
        return said


def seed_foreign(seed: int, progress: Progress, rank: int) -> None:
    """Seeds torch's generators for modules that draw for themselves; ours draw from keys."""
    word = keys.key(seed, 9, progress.phase, progress.step, rank) >> 1
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(word)


def open_data(phase: Phase) -> tuple[Split, Split]:
    data = phase_data(phase)
    train, held = open_split(data, "train"), open_split(data, "eval")
    if train.info.classes != held.info.classes:
        raise RecipeError(
            f"train has {train.info.classes} classes, {data.eval_split} {held.info.classes}: they are of different data"
        )
    return train, held


def phase_plan(phase: Phase, split: Split) -> Plan:
    return plan(phase_data(phase), split.info.samples, phase.epochs, phase.steps)


def build_stage(recipe: Recipe, number: int, session: Session, folder: Folder | None) -> Stage:
    """The stage of phase ``number`` of a resolved recipe. ``folder``: where earlier phases left their networks."""
    phase = recipe.phases[number]
    train, held = open_data(phase)
    schedule = phase_plan(phase, train)
    check_reading(phase_data(phase))
    check_batch(schedule, session.size, recipe.machine.accumulate)
    refuse_unfit(session.parallel, phase, phase.method.needs())
    task, world = task_of(recipe), session.world()
    with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng(devices=[]):
        warnings.simplefilter("always", UserWarning)
        networks = build_networks(recipe, number, train.info, folder, session.device)
        fresh = partial(fresh_network, recipe, number, train.info)
        context = Context(networks, fresh, train.info, world, task, phase, recipe.seed, recipe.precision, session.device)
        torch.default_generator.manual_seed(keys.key(recipe.seed, 8, number) >> 1)  # heads and adapters, equal on every rank
        distiller: nn.Module = phase.method.build(context)  # type: ignore[attr-defined]
    trained = {role: n for role, n in networks.items() if not isinstance(n, FrozenNetwork)}
    frozen = {role: n for role, n in networks.items() if isinstance(n, FrozenNetwork)}
    if recipe.batch_norm == "sync":
        synchronise(distiller, world)
    take_carried(distiller, recipe, number, folder)
    place(distiller, frozen.values(), session, recipe)
    if session.device.type == "cpu":
        keep_freed_memory()
    answers = answer_names(recipe, distiller, train.info, session.device)
    if recipe.machine.compile:
        compile_networks(distiller, frozen.values())
    groups = parameter_groups(distiller, distiller.parts(), phase.optimizer)  # type: ignore[operator]
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return Stage(recipe, number, session, train, held, schedule, task, frozen, trained, distiller, groups, answers, said)


def student_of(distiller: nn.Module) -> Network:
    student = distiller.student
    if not isinstance(student, Network):
        raise RecipeError(f"{type(distiller).__name__}.student is no network")
    return student


def place(distiller: nn.Module, frozen: Iterable[FrozenNetwork], session: Session, recipe: Recipe) -> None:
    """Sharding back-ends cut contiguous tensors: there channels_last is left to the frozen networks."""
    wanted = torch.channels_last if recipe.machine.channels_last else torch.preserve_format
    layouts = [(distiller, wanted if session.parallel == "ddp" else torch.preserve_format), *((n, wanted) for n in frozen)]
    for module, layout in layouts:
        module.to(device=session.device, memory_format=layout)  # type: ignore[call-overload]


def compile_networks(distiller: nn.Module, frozen: Iterable[FrozenNetwork]) -> None:
    """In place, so that the names of the state stay as they are."""
    for network in {id(m): m for d in (distiller, *frozen) for m in d.modules() if isinstance(m, Network)}.values():
        network.compile()


@torch.no_grad()
def answer_names(recipe: Recipe, distiller: nn.Module, info: DatasetInfo, device: torch.device) -> tuple[str, ...]:
    """The names that evaluations will have, from one blank image; before compilation, which would specialise on it."""
    one = torch.zeros(1, dtype=torch.int64, device=device)
    blank = torch.zeros(1, 3, info.size, info.size, device=device)
    distiller.eval()
    try:
        names = tuple(distiller(Batch(blank, (info.mean, info.std), one, None, one, one, one, one == 0)))
        return (*names, "ema") if recipe.ema and "student" in names else names
    finally:
        distiller.train()
