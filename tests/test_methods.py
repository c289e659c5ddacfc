"""The contract that every registered method keeps. A method that is registered is tested with no line added here.

Each runs with its defaults on a small network of each kind that it takes; ``methods/cases.py`` adds settings that build other
parts. What needs data, optimizer and saves runs on the engine's own, on real shards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdscale.engine.checkpoint import saving
from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.checkpoint.phase_file import PhaseFile
from kdscale.engine.keeper import Memory, collect, put_weights, restore, write_phase_file
from kdscale.engine.meter import Meter
from kdscale.engine.parallel import Session, connect
from kdscale.methods import Method
from kdscale.networks import cifar
from kdscale.recipe import FromPhase, Model, from_json, resolve, to_json
from kdscale.types import Progress

from .engine import small, stages
from .engine.launch import two_ranks
from .imagined_gpu import DEVICE, ImaginedGpu
from .methods.cases import CASES, METHODS, REGISTRY, WHOLE, Case, is_quick, recipe_of
from .methods.small import BATCH, CLASSES, CLOCK, built, drawn_batch, taught, total

SLOW = pytest.mark.slow
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if is_quick(c.whole, c.kind) else SLOW, id=key) for key, c in CASES.items()]
)
whole_methods = pytest.mark.parametrize(
    ("method", "kind"),
    [pytest.param(m, kind, marks=() if is_quick(m, kind) else SLOW, id=key) for key, (m, kind) in WHOLE.items()],
)
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def losses_of(case: Case, seed: int = 0, precision: str = "fp32", soft: bool = False) -> dict[str, Tensor]:
    distiller, context = built(case.phase, case.kind, seed, precision)
    distiller.before_step(CLOCK)
    batch = drawn_batch(soft=soft)
    losses: dict[str, Tensor] = distiller(batch, taught(case.method, context, batch))
    return losses


@every_case
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft targets"])
def test_losses_are_finite_named_scalars(case: Case, soft: bool) -> None:
    losses = losses_of(case, soft=soft)
    assert losses
    for name, loss in losses.items():
        assert name
        assert loss.shape == (), f"{name} has shape {tuple(loss.shape)}"
        assert loss.isfinite(), f"{name} is {loss}"


@every_case
def test_every_trained_parameter_learns_and_no_frozen_one(case: Case) -> None:
    distiller, context = built(case.phase, case.kind)
    batch = drawn_batch()
    total(distiller(batch, taught(case.method, context, batch))).backward()
    idle = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    held = [name for name, p in distiller.named_parameters() if not p.requires_grad and p.grad is not None]
    for role in case.method.needs().frozen:
        held += [f"{role}.{name}" for name, p in context.networks[role].named_parameters() if p.grad is not None]
        assert context.networks[role] not in set(distiller.modules()), f"the distiller holds the frozen {role}"
    assert held == []


@every_case
def test_parts_are_all_that_is_trained(case: Case) -> None:
    distiller, _ = built(case.phase, case.kind)
    parts = [p for part in distiller.parts().values() for p in part.parameters() if p.requires_grad]
    assert len(parts) == len(set(parts))
    assert set(parts) == {p for p in distiller.parameters() if p.requires_grad}
    assert "student" in distiller.parts()


@every_case
def test_what_the_teachers_said_is_not_changed(case: Case) -> None:
    distiller, context = built(case.phase, case.kind)
    batch = drawn_batch(soft=True)
    said = taught(case.method, context, batch)
    before = {
        (r, n): t.clone()
        for r, o in said.items()
        for n, t in ({"logits": o.logits} | o.taps | o.heads).items()
        if t is not None
    }
    pixels, targets = batch.images.clone(), batch.targets
    total(distiller(batch, said)).backward()
    for (role, name), kept in before.items():
        now: dict[str, Any] = {"logits": said[role].logits} | said[role].taps | said[role].heads
        assert torch.equal(now[name], kept), f"{role}'s {name} was changed"
    assert torch.equal(batch.images, pixels)
    assert batch.targets is targets


@every_case
def test_the_same_seed_gives_the_same_losses(case: Case) -> None:
    first, again, other = losses_of(case), losses_of(case), losses_of(case, seed=1)
    assert {n: float(v.detach()) for n, v in first.items()} == {n: float(v.detach()) for n, v in again.items()}
    assert any(not torch.equal(first[name], other[name]) for name in first)


def plain(model: Model, classes: int) -> nn.Module:
    """The architecture as somebody without kdscale would make it."""
    if cifar.known(model.name):
        return cifar.build(model.name, classes)
    made: nn.Module = timm.create_model(model.name, num_classes=classes, drop_path_rate=model.drop_path, **model.args)
    return made


@whole_methods
def test_what_is_exported_has_the_keys_of_the_architecture(
    method: Method, kind: str, data: Path, session: Session, tmp_path: Path
) -> None:
    """What an export takes from a finished run, raw and averaged: names, shapes and types of the plain network, no more."""
    stage = list(stages.stages(stages.recipe_of(method, kind, data), session))[-1]
    stages.run(stage, Meter(session), 0, 1)
    folder = Folder(tmp_path)
    write_phase_file(stage, folder, "end", Memory(step=1))
    left = PhaseFile(folder.phase_path(stage.number, stage.phase.name) / "end.safetensors")
    expected = {n: (t.shape, t.dtype) for n, t in plain(stages.STUDENTS[kind], small.CLASSES).state_dict().items()}
    for what in ("student", "ema"):
        assert {n: (t.shape, t.dtype) for n, t in left.body(what).items()} == expected, what
    trained = stage.distiller.student.body.state_dict()
    assert all(torch.equal(left.body("student")[n], t) for n, t in trained.items())


@whole_methods
def test_a_save_gives_the_next_step_the_same_bits(
    method: Method, kind: str, data: Path, session: Session, tmp_path: Path
) -> None:
    """Losses, norm of the gradient, weights, buffers, moments and EMA after the step that follows a save."""
    recipe = stages.recipe_of(method, kind, data)
    pairs = zip(stages.stages(recipe, session), stages.stages(recipe, session), strict=True)
    for stage, fresh in pairs:
        meter, there = Meter(session), Meter(session)
        stages.run(stage, meter, 0, 2)
        path = saving.write(tmp_path, stage.number, collect(stage, Memory(step=2, global_step=2), meter))
        put_weights(fresh, save := saving.read(path))
        assert restore(fresh, save, there).step == 2
        assert stages.run(fresh, there, 2, 1) == stages.run(stage, meter, 2, 1)
        expected, continued = (collect(s, Memory(), m) for s, m in ((stage, meter), (fresh, there)))
        assert continued.facts == expected.facts
        for name, tensor in (expected.trained | expected.buffers).items():
            assert torch.equal((continued.trained | continued.buffers)[name], tensor), name


@every_case
def test_the_clock_alone_sets_what_the_clock_sets(case: Case) -> None:
    distiller, _ = built(case.phase, case.kind)
    saved = set(distiller.state_dict())
    clocked = {n: b for n, b in distiller.named_buffers() if n not in saved}
    distiller.before_step(CLOCK)
    at = {n: b.clone() for n, b in clocked.items()}
    distiller.before_step(Progress(1, 900, 5400, 90.0, 100.0))
    assert not torch.equal(distiller.noise_key, at["noise_key"])
    distiller.before_step(CLOCK)
    assert all(torch.equal(clocked[n], at[n]) for n in clocked)
    assert all(clocked[n].ndim == 0 for n in at if "." not in n)


@every_case
def test_bf16_autocast_agrees_and_losses_stay_float32(case: Case) -> None:
    """bfloat16 keeps 8 bits: the logits of these few layers agree to about a hundredth, and so do the losses."""
    full, half = losses_of(case), losses_of(case, precision="bf16")
    assert full.keys() == half.keys()
    for name in full:
        assert half[name].dtype == torch.float32
    scale = float(total(full).detach())
    for name in full:
        assert float(half[name].detach()) == pytest.approx(float(full[name].detach()), abs=0.03 * scale)


@every_case
def test_a_step_on_a_gpu_waits_for_nothing_and_leaves_nothing_on_the_host(case: Case) -> None:
    """All but the backward pass, on an imagined GPU."""
    distiller, context = built(case.phase, case.kind)
    metric, gpu = context.task.metric(context.data), ImaginedGpu()
    gpu.take((distiller, *(context.networks[role] for role in case.method.needs().frozen)))
    batch = gpu.batch(drawn_batch(soft=True))
    with gpu.working():
        distiller.before_step(CLOCK)
        losses = distiller(batch, taught(case.method, context, batch))
        distiller.after_step(CLOCK)
        metric.update(distiller(batch), batch)
    assert {loss.device for loss in losses.values()} == {DEVICE}


@every_case
def test_predictions_are_logits_and_name_the_student(case: Case) -> None:
    distiller, _ = built(case.phase, case.kind)
    distiller.eval()
    with torch.no_grad():
        predictions = distiller(drawn_batch())
    for name, logits in predictions.items():
        assert logits.shape == (BATCH, CLASSES), name
        assert logits.isfinite().all(), name
    assert not predictions or "student" in predictions


@every_case
def test_taps_that_a_method_needs_are_there(case: Case) -> None:
    _, context = built(case.phase, case.kind)
    for role, taps in case.method.needs().taps.items():
        network = context.networks[role]
        assert set(network.expanded(taps)) <= set(network.tap_names())
        assert network.expanded(taps)


@every_method
def test_roles_are_told_apart(method: Method) -> None:
    needs = method.needs()
    roles = (*needs.trained, *needs.frozen, *needs.drawn)
    assert len(set(roles)) == len(roles)
    assert needs.trained
    assert set(needs.taps) <= {*needs.trained, *needs.frozen}
    assert "classification" in method.supports


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=REGISTRY.keys())
def test_the_paper_is_filled(cls: type[Method]) -> None:
    paper = cls.paper
    assert all((paper.title, paper.authors, paper.venue, paper.section, paper.formula))
    assert 1990 < paper.year < 2100
    assert cls.__doc__


@every_method
def test_json_is_the_same_recipe(method: Method) -> None:
    recipe = recipe_of(method)
    text = to_json(recipe)
    assert from_json(text) == recipe
    assert json.loads(text)["phases"][0]["method"]["kind"] == method.kind  # type: ignore[attr-defined]


@every_method
def test_expanding_an_expanded_phase_changes_nothing(method: Method) -> None:
    once = resolve(recipe_of(method))
    assert resolve(once) == once
    for phase in once.phases:
        assert phase.method.phases(phase) == (phase,)
        assert not any(isinstance(source, FromPhase) and source.phase == phase.name for source in phase.networks.values())


@pytest.mark.ranks
def test_two_processes_equal_one_on_the_same_global_batch(data: Path, session: Session, tmp_path: Path) -> None:
    """The whole registry in one start of two ranks: the same losses, gradients and weights, within rounding."""
    out = tmp_path / "two.json"
    two_ranks("tests.engine.stages", data, out)
    two, one = json.loads(out.read_text()), stages.every_method(data, session)
    assert two.keys() == one.keys()
    for case, alone in one.items():
        for mine, theirs in zip(alone["steps"], two[case]["steps"], strict=True):
            assert theirs["losses"] == pytest.approx(mine["losses"], abs=3e-5, rel=1e-4), case
            # Wider than the losses': rounding may carry an activation over the kink of a ReLU.
            assert theirs["norm"] == pytest.approx(mine["norm"], rel=2e-3), case
        assert two[case]["weights"] == pytest.approx(alone["weights"], abs=3e-3), case
