"""Whole forecasts: recipes whose data and teachers are absent, several phases and students, and predictions against real steps."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import kdscale.methods
from kdscale.errors import DataError, NetworkError, RunError
from kdscale.methods import DML, RCO, Crd, FitNets, Shake, Supervised
from kdscale.plan import Forecast, Machines, forecast, gpu_named
from kdscale.plan.building import build, standing_in
from kdscale.plan.counted import count
from kdscale.plan.facts import facts_of
from kdscale.plan.known import Mark
from kdscale.plan.memory import Memory
from kdscale.plan.probe import seconds_of, this_processor
from kdscale.plan.tell import tables
from kdscale.recipe import Augment, Data, FromPhase, Machine, Model, Phase, Recipe, Stored, resolve
from kdscale.recipe.load import load, meant, recipes_of, shipped
from kdscale.recipe.resolve import phase_data
from tests.engine import small

assert kdscale.methods
CIFAR = Data("cifar100", batch=64, train=Augment.cifar())


def tiny(method: Any, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "networks": {"student": Model("resnet8"), "teacher": Model("resnet14")},
        "data": CIFAR,
        "phases": (Phase(method, epochs=2, name="only"),),
        "name": "tiny",
    }
    return Recipe(**(settings | changes))


def planned(recipe: Recipe, nodes: int = 1, gpus: int = 2, **changes: Any) -> Forecast:
    return forecast(recipe, Machines(nodes, gpus, gpu_named("h100"), **changes))


@pytest.fixture(scope="module")
def shake() -> Forecast:
    return planned(tiny(Shake()), price=2.0)


def test_a_small_recipe_by_hand(shake: Forecast) -> None:
    found = shake
    (phase,) = found.phases
    assert phase.plan.total_steps == 2 * 50_000 // 64
    assert phase.memory.weights == 4 * phase.counted.parameters
    assert phase.counted.frozen["teacher"].parameters > 100_000
    assert phase.seconds == pytest.approx(phase.plan.total_steps * phase.times.step)
    assert found.cost == pytest.approx(2.0 * 2 * found.hours)
    assert phase.balance.samples_a_rank[0] == phase.balance.samples_a_rank[1]
    assert phase.times.bound == "launches"


def test_every_number_says_how_it_is_known(shake: Forecast) -> None:
    told = list(tables(shake))
    for table in told:
        if "known" in table.columns:
            place = table.columns.index("known")
            assert {row[place] for row in table.rows} <= set(get_args(Mark)), table.title
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert [table.title for table in told][-1] == "the whole run"


def test_several_students_and_phases() -> None:
    needed = DML().needs().trained
    peers = tiny(DML(), networks={role: Model("resnet8") for role in needed})
    alone = tiny(Supervised())
    found, single = planned(peers).phases[0].counted, planned(alone).phases[0].counted
    assert found.parameters == len(needed) * single.parameters
    phases = (
        Phase(Supervised(), epochs=1, name="teacher", networks={"student": Model("resnet14")}),
        Phase(Shake(), epochs=2, name="student"),
    )
    both = planned(tiny(Shake(), networks={"student": Model("resnet8"), "teacher": FromPhase("teacher")}, phases=phases))
    assert [phase.name for phase in both.phases] == ["teacher", "student"]
    assert both.hours == pytest.approx(sum(phase.seconds for phase in both.phases) / 3600)


def test_a_bank_and_rows_from_all_ranks_are_counted() -> None:
    few = forecast(tiny(Crd(negatives=64)), Machines(1, 2, gpu_named("h100")), samples=2000, classes=10)
    (bank,) = few.phases
    assert bank.counted.held > 2 * 2000 * 128 * 4
    assert bank.counted.gathered.at(32) == 0  # its rows are exchanged after the step
    (relations,) = planned(tiny(FitNets(), batch_norm="sync"), gpus=4).phases
    assert relations.counted.gathers == 10  # a batch norm each


def test_teachers_that_take_turns_share_the_time() -> None:
    anchors = RCO().needs().frozen
    teachers = {role: FromPhase("teacher") for role in anchors}
    recipe = tiny(
        RCO(),
        networks={"student": Model("resnet8"), **teachers},
        phases=(
            Phase(Supervised(), epochs=4, name="teacher", networks={"student": Model("resnet14")}),
            Phase(RCO(), epochs=4, name="student"),
        ),
    )
    frozen = planned(recipe).phases[1].counted.frozen
    assert len(frozen) == len(anchors)
    assert sum(teacher.share for teacher in frozen.values()) == pytest.approx(1)


def test_a_stored_teacher_costs_nothing(shake: Forecast) -> None:
    stored = tiny(Shake(), networks={"student": Model("resnet8"), "teacher": Stored("nowhere")})
    counted = planned(stored).phases[0].counted
    assert counted.frozen == {}
    assert counted.parameters == shake.phases[0].counted.parameters


def test_a_sharded_back_end_that_the_method_refuses_is_told_as_such() -> None:
    own = load("cifar100/resnet56_resnet20:shake_own_bn")
    memories = planned(own).phases[0].memories
    assert isinstance(memories["zero2"], Memory)
    assert isinstance(memories["zero3"], str)
    with pytest.raises(RunError, match=r"machine\.parallel=fsdp2 cannot shard"):
        planned(replace(own, machine=Machine(parallel="fsdp2")))


def test_what_a_run_refuses_a_plan_refuses() -> None:
    with pytest.raises(DataError, match="global batch 64 is not divisible by ranks 6; nearest that fit: 60, 66"):
        planned(tiny(Supervised()), nodes=3)
    with pytest.raises(
        DataError, match=r"'mine' are not here and no published set has that name: give --samples and --classes"
    ):
        planned(tiny(Supervised(), data=replace(CIFAR, source="mine")))
    with pytest.raises(NetworkError, match="resnet9"):
        planned(tiny(Supervised(), networks={"student": Model("resnet9")}))


@pytest.mark.slow
def test_a_large_teacher_is_imagined() -> None:
    """A ViT of 632 million parameters: 2.5 GB that are never there."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recipe = tiny(
        Shake(),
        networks={"student": Model("resnet18"), "teacher": Model("vit_huge_patch14_224")},
        data=Data("imagenet", batch=64),
    )
    (phase,) = planned(recipe).phases
    assert phase.counted.frozen["teacher"].parameters > 6e8
    assert phase.memory.frozen > 2.4e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB


@pytest.mark.slow
@pytest.mark.parametrize("name", meant(recipes_of(dict(shipped())["imagenet/resnet"])))
def test_every_shipped_imagenet_recipe_plans(name: str) -> None:
    found = planned(load(f"imagenet/resnet:{name}"), gpus=8)
    assert 0 < found.hours < 100
    assert all(phase.memory.total > 1e9 for phase in found.phases)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit", "shake"])
@pytest.mark.parametrize("parallel", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_the_flagship_plans_under_every_back_end(name: str, parallel: Any) -> None:
    recipe = load(f"imagenet/deit_tiny:{name}")
    found = planned(replace(recipe, precision="bf16", machine=Machine(parallel=parallel)), gpus=8)
    assert found.phases[0].plan.total_steps == math.floor(300 * 1_281_167 / 1024)


def kept(recipe: Recipe, size: int) -> tuple[float, float]:
    """(bytes that autograd keeps of a real step, as saved-tensor hooks see them, bytes that the plan says)."""
    ready = standing_in(resolve(recipe))
    facts = facts_of(phase_data(ready.phases[0]))
    planned_line = count(ready, 0, facts.info, 2, 1, 2).kept
    built = build(ready, 0, facts.info, 2, 1, lambda t: t, torch.device("cpu"))
    batch = built.batch(size, torch.device("cpu"))
    built.distiller.before_step(built.progress)  # type: ignore[operator]
    modules = [built.distiller, *built.frozen.values()]
    known = {t.untyped_storage().data_ptr() for m in modules for t in (*m.parameters(), *m.buffers())}
    known.add(batch.images.untyped_storage().data_ptr())
    saved: dict[int, int] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.no_grad():
        taught = {role: built.say(role, batch.images) for role in built.speakers}
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
        losses = built.distiller(batch, taught)
    assert losses
    return float(sum(saved.values())), planned_line.at(size)


def test_activations_of_a_small_network_are_what_autograd_keeps() -> None:
    for size in (1, 2):
        real, said = kept(tiny(Shake()), size)
        assert said == pytest.approx(real, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 2])
def test_activations_of_the_flagship_are_what_autograd_keeps(size: int, precision: Any) -> None:
    real, said = kept(replace(load("imagenet/deit_tiny:shake"), precision=precision), size)
    assert said == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_a_probe_measures_this_machine(tmp_path: Path) -> None:
    recipe = small.two_phases(small.shards(tmp_path / "shards"))
    began = time.perf_counter()
    found = forecast(recipe, Machines(1, 1, this_processor()), probe=partial(seconds_of, "cpu"))
    assert time.perf_counter() - began > sum(phase.times.probed or 0 for phase in found.phases) > 0
    assert [phase.times.mark for phase in found.phases] == ["measured", "measured"]
    assert found.phases[0].facts.samples.mark == "measured"
