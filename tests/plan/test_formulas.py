"""Memory, traffic, times, saves and advice against small calculations by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from kdscale.data import plan
from kdscale.errors import RunError
from kdscale.methods import Supervised
from kdscale.plan.advice import changes, fitting
from kdscale.plan.gpus import GPUS, Gpu, gpu_named
from kdscale.plan.known import Known, weakest
from kdscale.plan.machines import Machines
from kdscale.plan.memory import BACKENDS, memory, moments, states, traffic
from kdscale.plan.storage import storage
from kdscale.plan.times import Job, times
from kdscale.recipe import SGD, AdamW, Checkpointing, Data, Model, Phase, Recipe, Timm

from .shapes import P, counted

ROUND = Gpu("round", 100, 50, 10, 80, 1000, 100)  # 1e14 FLOP/s in bf16


def machines(nodes: int = 1, gpus: int = 1, **changes: Any) -> Machines:
    return Machines(nodes, gpus, ROUND, **changes)


def job(**changes: Any) -> Job:
    settings: dict[str, Any] = {"precision": "bf16", "parallel": "ddp", "accumulate": 1, "images": 64, "size": 0.0}
    return Job(counted(), **(settings | changes))


def test_a_million_parameters_under_each_back_end() -> None:
    """Bytes of weights, gradients, AdamW's moments (and ZeRO's second weights) and what is gathered, on 8 ranks."""
    found = {backend: states(P, backend, 8, 8, P // 10) for backend in BACKENDS}
    assert found == {
        "ddp": (4e6, 4e6, 8e6, 0.0),
        "zero1": (4e6, 4e6, 1.5e6, 0.0),
        "zero2": (4e6, 0.5e6, 1.5e6, 4e6),
        "zero3": (0.5e6, 0.5e6, 1.5e6, 4e6),
        "fsdp2": (0.5e6, 0.5e6, 1e6, 0.4e6),
    }


def test_bytes_that_a_rank_sends() -> None:
    """Twice the gradients in a ring; the weights twice and the gradients once where they are sharded, for each micro-batch."""
    once = {backend: traffic(P, backend, 4, 1) for backend in BACKENDS}
    assert once == {"ddp": 6e6, "zero1": 6e6, "zero2": 6e6, "zero3": 9e6, "fsdp2": 9e6}
    twice = {backend: traffic(P, backend, 4, 2) for backend in BACKENDS}
    assert twice == {"ddp": 6e6, "zero1": 6e6, "zero2": 9e6, "zero3": 18e6, "fsdp2": 18e6}
    assert traffic(P, "ddp", 1, 1) == 0


def test_optimizers_keep_moments() -> None:
    assert [moments(value) for value in (SGD(), SGD(momentum=0), AdamW(), Timm("lamb"))] == [4, 0, 8, 8]


def test_memory_of_a_rank_adds_up() -> None:
    found = memory(counted(held=5), "ddp", 8, 10, 8, resident=7.0, overhead=100.0, scatter=0.1)
    assert found.average == 4e6
    assert found.frozen == 8e6
    assert found.buffers == 5
    assert found.activations == pytest.approx(1.1 * 11e6)
    assert found.data == 2 * 10 * 1000 + 7
    assert found.total == pytest.approx(4e6 + 4e6 + 8e6 + 4e6 + 8e6 + 5 + 12.1e6 + 20007 + 100)
    assert memory(counted(), "fsdp2", 8, 10, 8, resident=0, overhead=0, scatter=0).average == 0.5e6


def test_arithmetic_is_each_kind_of_work_at_its_own_share() -> None:
    found = times(job(), machines())
    assert found.compute == pytest.approx(64 * (1e10 / (1e14 * 0.3) + 3e10 / (1e14 * 0.2)))
    assert found.memory == pytest.approx(64 * 1e6 / (1e12 * 0.75))
    assert found.launches == pytest.approx(100 * 5e-6)
    assert found.optimizer == pytest.approx(32e6 / 1e12)
    assert found.step == pytest.approx(found.compute + found.optimizer)
    assert (found.bound, found.mark, found.sent) == ("compute", "assumed", 0.0)


def test_float32_lets_convolutions_alone_use_tf32() -> None:
    assert [ROUND.peak("convolution", "fp32"), ROUND.peak("matmul", "fp32"), ROUND.peak("matmul", "bf16")] == [5e13, 1e13, 1e14]


def test_data_bound_a_run_by_cores_or_by_the_disk() -> None:
    few = times(job(size=100_000.0), machines(2, 4, cores=Known(8, "given")))
    assert few.data == pytest.approx(64 / (2 * 8 * 125))
    slow = times(job(size=100_000.0), machines(2, 4, disk=Known(0.01, "given")))
    assert slow.data == pytest.approx(64 / (2 * 1e7 / 1e5))
    assert slow.bound == "data"
    assert slow.step == pytest.approx(slow.data + slow.optimizer)


def test_a_slow_network_is_hidden_in_part() -> None:
    found = times(job(), machines(2, 1, bandwidth=Known(0.01, "given")))
    assert found.sent == 4e6
    assert found.network == pytest.approx(4e6 / 1e7 + 2 * 10e-6)
    trained = 2 / 3 * found.device / 4  # a quarter of the work is the student's
    assert found.exposed == pytest.approx(found.network - trained)
    assert found.bound == "network"
    inside = times(job(), machines(1, 2, bandwidth=Known(0.1, "given")))
    assert inside.network == pytest.approx(4e6 / 1e11 + 2 * 10e-6)
    assert inside.exposed == 0


def test_a_probe_takes_the_place_of_all_three() -> None:
    found = times(job(probed=2.0, accumulate=2), machines())
    assert (found.device, found.mark) == (4.0, "measured")


def test_the_cheapest_change_comes_first() -> None:
    told = [change.words for change in changes(job(precision="fp32"), machines(), stored=True)]
    assert told == ["precision=bf16", "a stored teacher (kdscale teach)"]
    assert "a stored teacher (kdscale teach)" not in [c.words for c in changes(job(), machines(), stored=False)]
    bound = [c.words for c in changes(job(size=110_000.0), machines(cores=Known(1, "given")), stored=True)]
    assert bound == ["shards of 256 pixels (kdscale data pack --short 256)", "twice the cores a node for reading"]
    slow = machines(2, 1, bandwidth=Known(0.01, "given"))
    words = [c.words for c in changes(job(parallel="fsdp2"), slow, stored=False)]
    assert words[0] == "machine.parallel=ddp"
    assert "twice the network" in words


def test_a_stored_teacher_saves_the_teacher() -> None:
    (change,) = (c for c in changes(job(), machines(), stored=True) if "stored" in c.words)
    own, whole = 1e10 / 0.3, 1e10 / 0.3 + 3e10 / 0.2
    assert change.factor == pytest.approx(own / whole, rel=1e-2)
    (probed,) = (c for c in changes(job(probed=1.0), machines(), stored=True) if "stored" in c.words)
    assert probed.factor == pytest.approx(0.25, rel=1e-3)


def test_what_does_not_fit_is_accumulated_or_sharded() -> None:
    large = memory(counted(), "ddp", 8, 8, 8, resident=0, overhead=0, scatter=0)
    small = replace(large, optimizer=0.0)
    tight = replace(ROUND, memory=(large.total - 1e6) / 1e9)
    assert fitting({"ddp": large}, job(), machines()) == ""
    assert fitting({"ddp": large, "zero1": small}, job(), Machines(1, 8, tight)) == "machine.parallel=zero1"
    assert fitting({"ddp": large}, job(), Machines(1, 8, tight)) == "machine.accumulate=2"
    assert fitting({"ddp": large, "zero3": "refused"}, job(), Machines(1, 8, replace(ROUND, memory=1e-3))).startswith(
        "more GPUs"
    )


def test_marks_add_up_to_the_weakest() -> None:
    assert weakest("counted", "vendor", "measured") == "vendor"
    assert weakest("given", "assumed") == "assumed"
    assert weakest() == "counted"


def test_gpus_have_their_makers_numbers() -> None:
    assert GPUS["h100"].bf16 == 989
    assert GPUS["a100"].memory == 80
    with pytest.raises(RunError, match=r"there is no GPU 'h1000' among those that are known: take h100"):
        gpu_named("h1000")


def test_storage_of_a_phase() -> None:
    recipe = Recipe(
        {"student": Model("resnet18")},
        Data("d", batch=100),
        (Phase(Supervised(), epochs=10),),
        checkpointing=Checkpointing(every_epochs=2, keep=3, keep_every_epochs=5),
    )
    schedule = plan(recipe.data, 1000, 10, None)
    found = storage(counted(held=10), recipe, 8, Machines(2, 8, ROUND), schedule, 3600.0)
    assert found.one == 4e6 + 8e6 + 4e6 + 10
    assert found.kept == 3 + 2
    assert found.left == 8e6 + 10
    assert found.total == 5 * found.one + 2 * found.left
    assert found.write == pytest.approx(found.one / 2e9)
    assert found.stall == pytest.approx(found.one / 25e9)
    assert found.every == pytest.approx(720.0)
    between = 3600 * 1000 / 16
    assert found.faults == pytest.approx(3600 / between)
    assert found.interval == pytest.approx(math.sqrt(2 * found.write * between))
    assert found.lost == pytest.approx(found.faults * 360)
