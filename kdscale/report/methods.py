"""The roll of methods: whose each is, of how many phases, and what it trains beside the student on one pair for all.

Parameters are counted on the distiller itself, built with fresh networks of the benchmark pair WRN-40-2 -> WRN-16-2. The networks
are copies of one another, so that the shapes of their maps are found once.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

from ..errors import KdscaleError
from ..networks import Network, build_network
from ..recipe import Data, Method, Model, Needs, Paper, Phase, Recipe, resolve
from ..tasks import task_of
from ..types import Context, DatasetInfo, World

TEACHER, STUDENT = "wrn_40_2", "wrn_16_2"
DISTILLED = "deit_tiny_distilled_patch16_224"  # the student of a method that needs a distillation token
CLASSES = 100
NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SAMPLES = 10 * CLASSES  # few: a memory of the whole set is no trained parameter
INFO = DatasetInfo("", SAMPLES, CLASSES, np.arange(SAMPLES, dtype=np.int32) % CLASSES, *NORMALISATION, size=32)
EPOCHS = 240
NAMED = 3  # authors; of more, the first
STRONG = re.compile(r"teacher|peer1$")


@dataclass(frozen=True)
class Count:
    """What a method expands to. ``beside``: trained parameters that are not the student's, in the phase that has most of them."""

    phases: int
    beside: int


def recipe_of(method: Method, teacher: str = TEACHER, student: str = STUDENT, source: str = "cifar100") -> Recipe:
    """The method on untrained networks. Teachers and the first peer are of the teacher's architecture, the latter as in
    SHAKE's tables of mutual learning; other peers and assistants are of the student's."""
    needs = method.needs()
    networks = {role: Model(teacher if STRONG.match(role) else student, floor=0) for role in roles(needs)}
    if needs.distillation_head:
        networks["student"] = Model(DISTILLED)
    return Recipe(networks=networks, data=Data(source), phases=(Phase(method, epochs=EPOCHS),))


def roles(needs: Needs) -> tuple[str, ...]:
    return (*needs.trained, *needs.frozen, *needs.drawn)


def beside_student(distiller: nn.Module, student: nn.Module | None) -> int:
    """Trained parameters of a phase that are not its student's; ``None``: the phase trains no student."""
    own = set() if student is None else {id(parameter) for parameter in student.parameters()}
    return sum(p.numel() for p in distiller.parameters() if p.requires_grad and id(p) not in own)


@dataclass
class Workshop:
    """Builds distillers without data. One network of each sort is drawn, the rest are its copies."""

    drawn: dict[tuple[Model, bool], Network] = field(default_factory=dict)

    def count(self, method: Method) -> Count:
        """Raises KdscaleError where the method cannot be built on this pair."""
        recipe = resolve(recipe_of(method))
        return Count(len(recipe.phases), max(self._beside(recipe, phase) for phase in recipe.phases))

    def _beside(self, recipe: Recipe, phase: Phase) -> int:
        needs = phase.method.needs()
        played = (*needs.trained, *needs.frozen)
        networks = {role: self._network(recipe.networks[role], role in needs.trained) for role in played}

        def fresh(role: str, copy: int) -> Network:
            return self._network(recipe.networks[role], True)

        world = World(0, 1, lambda t: t, lambda t: t.detach())
        context = Context(networks, fresh, INFO, world, task_of(recipe), phase, 0, device=torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            distiller: nn.Module = phase.method.build(context)  # type: ignore[attr-defined]
        return beside_student(distiller, networks["student"] if "student" in needs.trained else None)

    def _network(self, model: Any, trained: bool) -> Network:
        if (model, trained) not in self.drawn:
            made = build_network(model, INFO, trained=trained, seed=0, normalisation=NORMALISATION)
            self.drawn[model, trained] = made
        network = self.drawn[model, trained]
        if not trained:
            return network
        network.shape("logits")
        return copy.deepcopy(network)


def roll() -> Iterator[str]:
    """Every registered method, a line each in aligned columns, each as soon as it is counted."""
    every, workshop = sorted(Method.registry.items()), Workshop()
    kinds, papers = ("method", *(kind for kind, _ in every)), ("paper", *(_named(method.paper) for _, method in every))
    widths = [max(map(len, kinds)), 4, 6, 12, max(map(len, papers))]
    yield _line(widths, "method", "year", "phases", "trained", "paper", "")
    for kind, method in every:
        paper = method.paper
        try:
            count = workshop.count(method())
            phases, beside, note = str(count.phases), f"{count.beside:,}", ""
        except KdscaleError as error:
            phases, beside, note = "-", "-", f"; not counted: {' '.join(str(error).split())}"
        yield _line(widths, kind, str(paper.year), phases, beside, _named(paper), paper.title + note)
    yield f"trained: parameters beside the student's, in the phase that trains most, {TEACHER} -> {STUDENT}, {CLASSES} classes"


def _line(widths: list[int], kind: str, year: str, phases: str, beside: str, paper: str, title: str) -> str:
    """Words to the left, numbers to the right."""
    numbers = f"{year.rjust(widths[1])}  {phases.rjust(widths[2])}  {beside.rjust(widths[3])}"
    return f"{kind.ljust(widths[0])}  {numbers}  {paper.ljust(widths[4])}  {title}".rstrip()


def _named(paper: Paper) -> str:
    first, *others = paper.authors.split(", ")
    return f"{paper.authors if len(others) < NAMED else f'{first} et al.'}, {paper.venue}"


def described(method: type[Method]) -> Iterator[str]:
    """Paper, loss, published numbers, networks, phases, and every hyper-parameter with its default and, of a choice, the others."""
    made, paper, hints = method(), method.paper, get_type_hints(method)
    needs = made.needs()
    views = " of each image, each with its own augmentation" if needs.views > 1 else ""
    yield f"{hints['kind'].__args__[0]}: {paper.title}"
    yield f"  paper      {paper.authors}, {paper.venue} {paper.year}" + (f", section {paper.section}" if paper.section else "")
    yield f"  formula    {paper.formula}"
    yield from _column("published", paper.published)
    yield f"  trained    {_roles_of(needs)}"
    yield f"  views      {needs.views}{views}"
    yield from _column("phases", _phases_of(made))
    yield from (f"  {line}".rstrip() for line in (inspect.getdoc(method) or "").replace("``", "").splitlines())
    for setting in dataclasses.fields(method):
        if setting.name != "kind":
            yield f"  {setting.name} = {getattr(made, setting.name)!r}{_choice(hints[setting.name])}"


def _column(title: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"  {'' if number else title:<10} {line}"


def _roles_of(needs: Needs) -> str:
    drawn = f"; drawn: {', '.join(needs.drawn)} (the architecture alone)" if needs.drawn else ""
    head = "; the student has a distillation token" if needs.distillation_head else ""
    return f"{', '.join(needs.trained)}; frozen: {', '.join(needs.frozen) or 'none'}{drawn}{head}"


def _phases_of(method: Method) -> Iterator[str]:
    """Nothing for a method of one phase, which is described by itself."""
    parts = resolve(recipe_of(method)).phases
    for part in parts if len(parts) > 1 else ():
        yield f"{part.name}: trained {_roles_of(part.method.needs())}"


def _choice(hint: Any) -> str:
    parts = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    words = ", ".join(repr(value) for part in parts for value in get_args(part))
    return f"  of {words}" if words else ""
