"""The shipped recipes: each resolves, is equal to its JSON, and (slowly) builds what it trains, teachers with random weights."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch

import kdscale.methods
from kdscale.engine.sources import build_networks, fresh_network
from kdscale.recipe import Model, Recipe, from_json, resolve, to_json
from kdscale.recipe.load import recipes_of
from kdscale.tasks import task_of
from kdscale.types import Context, DatasetInfo, World

assert kdscale.methods
ROOT = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(path for path in ROOT.rglob("*.py") if not path.name.startswith("_"))
QUICK = {"quickstart", "short_cpu", "own_data"}
INFO = DatasetInfo("nothing", 50_000, 100, None, (0.5,) * 3, (0.25,) * 3, 32)
ALONE = World(0, 1, lambda t: t, lambda t: t)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).with_suffix("").as_posix())
def test_every_recipe_resolves_and_is_equal_to_its_json(path: Path) -> None:
    for name, recipe in recipes_of(path).items():
        resolved = resolve(recipe)
        assert resolve(resolved) == resolved, name
        assert from_json(to_json(recipe)) == recipe, name


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow, id=p.stem)
        for p in FILES
        if p.parent.name != "imagenet"
    ],
)
def test_every_recipe_builds_what_it_trains(path: Path) -> None:
    failed = {}
    for name, recipe in recipes_of(path).items():
        try:
            build(resolve(unwritten(recipe)))
        except Exception as error:
            failed[name] = str(error)
    assert not failed


def test_a_teacher_that_is_to_be_stopped_early_begins_from_nothing() -> None:
    teacher = resolve(recipes_of(ROOT / "cifar100" / "vgg13_vgg8.py")["eskd"]).phases[0]
    assert teacher.method.needs().trained == ("teacher",)
    assert teacher.networks == {"teacher": Model("vgg13")}


def test_branches_of_a_light_network_have_its_rate() -> None:
    table = recipes_of(ROOT / "cifar100" / "sftn_tables.py")
    rates = [
        [phase.optimizer.lr for phase in table[f"table7-wrn_40_2-wrn_16_2-branches-{branch}-kd"].phases]
        for branch in ("ShuffleV2", "wrn_16_1")
    ]
    assert rates == [[0.01, 0.05], [0.05, 0.05]]


def test_a_student_of_one_block_a_group_is_cut_into_its_groups() -> None:
    """Its groups cannot be halved, so four stages would be refused."""
    for pair, stages in {"resnet32x4_resnet8x4": 3, "resnet32x4_resnet8x2": 3, "vgg13_vgg8": 4}.items():
        (phase,) = recipes_of(ROOT / "cifar100" / f"{pair}.py")["stage_by_stage"].phases
        assert phase.method.stages == stages  # type: ignore[attr-defined]


def unwritten(recipe: Recipe) -> Recipe:
    """The same with a random network wherever a teacher has yet to be trained; no large set of labels is needed."""

    def drawn(source: object) -> object:
        if isinstance(source, Model) and source.made_by:
            return Model(source.made_by.rpartition(":")[2].partition("-seed")[0])
        return source

    phases = tuple(
        dataclasses.replace(phase, networks={role: drawn(s) for role, s in phase.networks.items()}) for phase in recipe.phases
    )
    networks = {role: drawn(source) for role, source in recipe.networks.items()}
    return dataclasses.replace(recipe, networks=networks, phases=phases)


def build(recipe: Recipe) -> None:
    import numpy as np

    info = dataclasses.replace(INFO, labels=np.arange(INFO.samples, dtype=np.int32) % INFO.classes)
    for number, phase in enumerate(recipe.phases):
        networks = build_networks(recipe, number, info, None, torch.device("cpu"))
        fresh = partial(fresh_network, recipe, number, info)
        context = Context(networks, fresh, info, ALONE, task_of(recipe), phase, 0, "fp32", torch.device("cpu"))
        distiller = phase.method.build(context)  # type: ignore[attr-defined]
        assert distiller.parts(), phase.name
