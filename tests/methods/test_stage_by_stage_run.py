"""A whole run, stage by stage: what each phase leaves, what is measured, what is exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import Stage, build_stage
from kdscale.export.from_run import export_run
from kdscale.methods import StageByStage
from kdscale.recipe import SGD, Constant, Evaluation, Model, Phase, Plateau, Recipe, resolve
from tests.engine import small
from tests.engine.mishaps import killed_at_save, train
from tests.engine.stages import origin
from tests.engine.test_run import same

PHASES = ("01-gao-stage1", "02-gao-stage2", "03-gao-stage3", "04-gao-head")


def recipe(data: Path, **changes: Any) -> Recipe:
    """Three stages and the classifier, four steps each."""
    phase = Phase(StageByStage(stages=3), steps=4, name="gao", optimizer=SGD(0.01), schedule=Constant())
    networks = {"student": Model("wrn_16_1"), "teacher": Model("wrn_16_2", floor=0)}
    settings = {"networks": networks, "phases": (phase,), "ema": None, "evaluation": Evaluation(every=0.4)}
    return small.recipe(data, **(settings | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


@pytest.fixture(scope="module")
def out(data: Path, session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gao") / "out"
    assert train(recipe(data), folder, session) == 0
    return folder


def body(out: Path, phase: str) -> dict[str, torch.Tensor]:
    """The student of a phase, by the architecture's own names."""
    return {n.removeprefix("student.body."): t for n, t in small.weights(out, phase).items() if n.startswith("student.")}


def test_a_phase_changes_its_own_stage_and_nothing_else(out: Path) -> None:
    parts = [{"block2"}, {"block3", "bn1"}, {"fc"}]
    for before, after, own in zip(PHASES, PHASES[1:], parts, strict=False):
        old, new = body(out, before), body(out, after)
        changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
        assert changed == own, after


def test_adapters_are_left_behind(out: Path) -> None:
    kept = [{n.split(".")[0] for n in small.weights(out, phase)} for phase in PHASES]
    assert kept == [{"student", "bridges"}] * 3 + [{"student"}]


def test_only_the_classifiers_phase_is_measured(out: Path) -> None:
    measured = [(e["phase"], e["name"]) for e in small.lines(out, "evaluation")]
    assert {phase for phase, name in measured if name == "student"} == {"gao-head"}
    assert [list(line["losses"]) for line in small.lines(out) if line["step"] == 4] == [
        ["stage1"],
        ["stage2"],
        ["stage3"],
        ["ce"],
    ]


def test_the_end_is_exported_as_the_plain_network(out: Path, tmp_path: Path) -> None:
    export_run(out, tmp_path / "export")
    left, exported = body(out, PHASES[-1]), load_file(tmp_path / "export" / "model.safetensors")
    assert left.keys() == exported.keys()
    assert all(torch.equal(left[name], exported[name]) for name in left)


def test_killed_in_a_later_stage_it_goes_on_to_the_same_bits(out: Path, data: Path, session: Session, tmp_path: Path) -> None:
    killed_at_save(recipe(data), tmp_path, session, 7)
    assert train(recipe(data), tmp_path, session) == 0
    for phase in PHASES:
        same(tmp_path, out, phase)


def test_stages_that_stop_by_themselves(data: Path, session: Session, tmp_path: Path) -> None:
    schedule = Plateau("train.loss", "min", patience=0, threshold=0.9, relative=True, end=1e-5, stops=True)
    phase = Phase(StageByStage(stages=1), epochs=60, name="gao", optimizer=SGD(0.01), schedule=schedule)
    train(recipe(data, phases=(phase,)), tmp_path, session)
    last = {line["phase"]: line["step"] for line in small.lines(tmp_path)}
    assert last == {"gao-stage1": 20, "gao-head": 20}
    assert [e["step"] for e in small.lines(tmp_path, "evaluation") if e["name"] == "student"][-1] == 20


def stage_of(recipe: Recipe, number: int, session: Session) -> Stage:
    recipe = resolve(recipe)
    phase = recipe.phases[number]
    phase = replace(phase, networks={role: origin(recipe, source) for role, source in phase.networks.items()})
    return build_stage(
        replace(recipe, phases=(*recipe.phases[:number], phase, *recipe.phases[number + 1 :])), number, session, None
    )


@pytest.mark.parametrize(("number", "blocks"), [(0, 2), (1, 4), (2, 6)])
def test_the_teacher_runs_no_further_than_its_part(number: int, blocks: int, data: Path, session: Session) -> None:
    stage = stage_of(recipe(data), number, session)
    ran: list[str] = []
    for name, module in stage.frozen["teacher"].body.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    stream = stage.stream()
    said = stage.teach(next(stream.batches(0)), stage.progress(0))
    stream.close()
    assert sum(name.endswith(("layer.0", "layer.1")) for name in ran) == blocks
    assert ("fc" in ran, said["teacher"].logits) == (False, None)


def test_the_classifiers_phase_has_no_teacher(data: Path, session: Session) -> None:
    assert stage_of(recipe(data), 3, session).frozen == {}
