"""Rows of phases as whole runs: what one phase leaves is what the next one is built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.checkpoint.phase_file import PhaseFile
from kdscale.engine.parallel import connect
from kdscale.engine.run import train
from kdscale.engine.stage import build_stage
from kdscale.methods import BAN, ESKD, KD, RCO, TAKD, Method, ReverseKD
from kdscale.recipe import SGD, FromPhase, Model, MultiStep, Phase, resolve
from kdscale.recipes.cifar100._protocol import base, friendly, restarted

from ..engine import small

ROLES = ("student", "teacher", "teacher2", "assistant")
CHAINS: dict[str, tuple[Method, list[str]]] = {
    "takd": (TAKD(), ["01-x-assistant", "02-x-student"]),
    "rco": (RCO(anchors=2, cycles=True), ["01-x-anchor1", "02-x-anchor2"]),
    "ban-cwtm": (BAN(generations=2, variant="cwtm", ensemble=True), ["01-x-generation1", "02-x-generation2"]),
    "ban": (BAN(generations=3, ensemble=True), ["01-x-generation1", "02-x-generation2", "03-x-generation3"]),
    "eskd": (ESKD(at=1.0), ["01-x-teacher", "02-x-student"]),
    "reverse_kd": (ReverseKD(update="first", first_epochs=1.0), ["01-x-both", "02-x-student"]),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "left"), CHAINS.values(), ids=CHAINS)
def test_a_row_of_phases_runs_to_its_end(method: Method, left: list[str], data: Path, tmp_path: Path) -> None:
    phase = Phase(method, epochs=2, name="x", optimizer=SGD(0.01))
    recipe = small.recipe(data, networks={role: Model("cnn6", floor=0) for role in ROLES}, phases=(phase,), ema=None)
    recipe = resolve(replace(recipe, data=replace(recipe.data, held_out=0)))
    session = connect()
    assert train(recipe, tmp_path, session, lambda *_: []) == 0
    assert sorted(p.name for p in (tmp_path / "phases").iterdir()) == left
    last = build_stage(recipe, len(recipe.phases) - 1, session, Folder(tmp_path))
    for role, source in last.phase.networks.items():
        if isinstance(source, FromPhase):
            number = recipe.phase_number(source.phase)
            kept = PhaseFile(tmp_path / "phases" / left[number] / "end.safetensors").body(source.role)
            now = (last.frozen | last.trained)[role].body.state_dict()
            assert all(torch.equal(now[name], tensor) for name, tensor in kept.items()), role
    if isinstance(method, BAN):
        assert {line["name"] for line in small.lines(tmp_path, "evaluation")} >= {"student", "ensemble"}
    last.wrapped.release()


def test_cycles_go_on_from_one_student_with_one_teacher_and_fresh_rates() -> None:
    first, *parts = resolve(restarted(friendly(base("resnet56", "resnet20"), "resnet56", KD()), 4)).phases
    assert [phase.name for phase in (first, *parts)] == ["friendly", "student1", "student2", "student3", "student4"]
    assert {phase.networks["teacher"] for phase in parts} == {FromPhase("friendly", role="teacher")}
    assert [phase.networks["student"] for phase in parts] == [
        Model("resnet20"), FromPhase("student1"), FromPhase("student2"), FromPhase("student3"),
    ]  # fmt: skip
    assert {(phase.epochs, phase.schedule, phase.optimizer) for phase in parts} == {(240, MultiStep(), SGD(0.05))}


@pytest.mark.slow
def test_cycles_run_to_their_end(data: Path, tmp_path: Path) -> None:
    whole = restarted(friendly(base("resnet14", "resnet8"), "resnet14", KD()), 3)
    phases = tuple(replace(phase, epochs=None, steps=3) for phase in whole.phases)
    taught = replace(phases[1], networks={"teacher": FromPhase("friendly", role="teacher", floor=0)})
    later = (replace(p, networks={**p.networks, **taught.networks}) for p in phases[2:])
    recipe = resolve(replace(whole, phases=(phases[0], taught, *later), data=replace(small.recipe(data).data, held_out=0)))
    session = connect()
    assert train(recipe, tmp_path, session, lambda *_: []) == 0
    for number, name in enumerate(("friendly", "student1", "student2"), 1):
        left = PhaseFile(tmp_path / "phases" / f"{number:02d}-{name}" / "end.safetensors")
        role = "teacher" if number == 1 else "student"
        taken = build_stage(recipe, number, session, Folder(tmp_path))
        now = (taken.frozen | taken.trained)[role].body.state_dict()
        assert all(torch.equal(now[key], tensor) for key, tensor in left.body(role).items()), name
        taken.wrapped.release()
