"""Rows of distillations: what each phase trains and from whom, which rates it has, and who speaks when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from kdscale.engine.schedule import learning_rate
from kdscale.errors import RecipeError
from kdscale.keys import torch_fold
from kdscale.losses.born_again import permuted
from kdscale.losses.logits import kd_kl
from kdscale.methods import BAN, ESKD, RCO, TAKD, Method, Supervised
from kdscale.methods.chain import compressed, cut_at
from kdscale.recipe import (
    Constant,
    Cosine,
    Data,
    FromPhase,
    Model,
    MultiStep,
    Phase,
    Plateau,
    Recipe,
    resolve,
)
from kdscale.types import Progress

from .small import CLOCK, built, drawn_batch, taught

ROLES = ("student", "teacher", "teacher2", "teacher3", "teacher4", "assistant", "assistant2")


def phases_of(method: Method, **changes: Any) -> tuple[Phase, ...]:
    phase = Phase(method, **{"epochs": 240, "name": "run", "schedule": MultiStep()} | changes)
    return resolve(Recipe({role: Model(f"{role}-net") for role in ROLES}, Data("drawn"), (phase,))).phases


def at(epoch: float, epochs: float = 240.0) -> Progress:
    return Progress(0, 1, 0, epoch, epochs)


# --- teacher assistants ---------------------------------------------------------------------------------------------------


def test_each_link_learns_from_the_one_before_it() -> None:
    first, second, third = phases_of(TAKD(assistants=2), carry=())
    assert first.networks == {"assistant": Model("assistant-net"), "teacher": Model("teacher-net")}
    assert second.networks == {
        "assistant2": Model("assistant2-net"),
        "assistant": FromPhase("run-assistant", role="assistant"),
    }
    assert third.networks == {"student": Model("student-net"), "assistant2": FromPhase("run-assistant2", role="assistant2")}
    assert [p.name for p in (first, second, third)] == ["run-assistant", "run-assistant2", "run-student"]
    assert {(p.epochs, p.schedule) for p in (first, second, third)} == {(240, MultiStep())}


@pytest.mark.parametrize("reduction", ["batch", "elementwise"])
def test_a_link_is_ordinary_distillation(reduction: Any) -> None:
    method = TAKD(reduction=reduction, learner="assistant")
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch = drawn_batch()
    said = taught(method, context, batch)
    student, teacher = distiller.student(batch.images).logits, said["teacher"].logits
    assert distiller.student is context.networks["assistant"]
    losses = distiller(batch, said)
    expected = 0.9 * kd_kl(student, teacher, 4.0).mean()  # type: ignore[arg-type]
    torch.testing.assert_close(losses["kd"], expected if reduction == "batch" else expected / 10)
    torch.testing.assert_close(losses["ce"], 0.1 * F.cross_entropy(student, batch.labels))  # type: ignore[arg-type]


def test_a_chain_without_its_assistant_is_refused() -> None:
    recipe = Recipe({"student": Model("a"), "teacher": Model("b")}, Data("drawn"), (Phase(TAKD(), epochs=1),))
    with pytest.raises(RecipeError, match="role 'assistant'"):
        resolve(recipe)
    with pytest.raises(ValidationError, match="no link of this chain"):
        TAKD(learner="assistant2")


# --- the teacher's route --------------------------------------------------------------------------------------------------


def test_anchors_speak_one_after_another_for_equal_shares() -> None:
    (phase,) = phases_of(RCO())
    heard = [phase.method.asks(at(epoch)) for epoch in (0.0, 59.99, 60.0, 119.9, 120.0, 180.0, 239.9, 240.0)]
    assert [role for (role,) in heard] == [
        "teacher", "teacher", "teacher2", "teacher2", "teacher3", "teacher4", "teacher4", "teacher4",
    ]  # fmt: skip


def test_the_loss_is_that_of_whoever_speaks() -> None:
    method = RCO(anchors=2)
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch = drawn_batch()
    student = distiller.student(batch.images).logits
    for epoch, role in ((0.3, "teacher"), (1.7, "teacher2")):
        said = taught(method, context, batch, at(epoch, 2.0))
        assert list(said) == [role]
        losses = distiller(batch, said)
        assert list(losses) == ["ce", "kd"]
        own = context.networks[role](batch.images).logits
        torch.testing.assert_close(losses["kd"], 0.9 * kd_kl(student, own, 4.0).mean())


def test_cycles_carry_the_student_and_begin_the_rates_anew() -> None:
    parts = phases_of(RCO(anchors=3, cycles=True))
    assert [p.method.needs().frozen for p in parts] == [("teacher",), ("teacher2",), ("teacher3",)]
    assert [p.networks["student"] for p in parts] == [
        Model("student-net"), FromPhase("run-anchor1"), FromPhase("run-anchor2"),
    ]  # fmt: skip
    assert {(p.epochs, p.schedule) for p in parts} == {(240, MultiStep())}
    with pytest.raises(ValidationError, match="no anchor 5 of 4"):
        RCO(anchor=5)


def test_anchors_are_epochs_of_a_phase_that_trains_the_teacher() -> None:
    route = {role: FromPhase("teacher", at=epoch) for role, epoch in (("teacher", 60), ("teacher2", 120))}
    phases = (
        Phase(Supervised(), epochs=120, name="teacher", networks={"student": Model("wrn_40_2")}),
        Phase(RCO(anchors=2), epochs=120, name="student", networks=route),
    )
    resolved = resolve(Recipe({"student": Model("wrn_16_2")}, Data("drawn"), phases))
    assert resolved.phases[1].networks["teacher2"] == FromPhase("teacher", at=120)


# --- generations ----------------------------------------------------------------------------------------------------------


def test_each_generation_learns_from_the_one_before_and_starts_afresh() -> None:
    parts = phases_of(BAN(generations=3))
    assert [p.networks["teacher"] for p in parts] == [
        Model("teacher-net"), FromPhase("run-generation1"), FromPhase("run-generation2"),
    ]  # fmt: skip
    assert all(p.networks["student"] == Model("student-net") for p in parts)


def test_an_ensemble_is_the_mean_of_all_generations_probabilities() -> None:
    last = phases_of(BAN(generations=3, ensemble=True))[-1]
    assert last.networks["teacher2"] == FromPhase("run-generation1")
    assert last.method.asks(at(1.0)) == ("teacher",)
    distiller, context = built(last.method, "cnn")  # type: ignore[arg-type]
    batch = drawn_batch()
    with torch.no_grad():
        said = distiller.eval()(batch)
        earlier = [context.networks[role](batch.images).logits.softmax(-1) for role in ("teacher", "teacher2")]
    mean = torch.stack([said["student"].softmax(-1), *earlier]).mean(0)
    torch.testing.assert_close(said["ensemble"].exp(), mean)
    assert list(distiller.parts()) == ["student"]


def test_a_generation_may_do_without_labels() -> None:
    distiller, context = built(BAN(labels=False), "cnn")
    batch = drawn_batch()
    assert list(distiller(batch, taught(BAN(), context, batch))) == ["kd"]
    with pytest.raises(ValidationError, match="one generation is no ensemble"):
        BAN(generations=1, ensemble=True)


def test_labels_weighed_by_how_sure_the_teacher_is() -> None:
    method = BAN(variant="cwtm", ce=2.0)
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch = drawn_batch()
    batch.valid[1] = False
    said = taught(method, context, batch)
    weights = said["teacher"].logits.softmax(-1).amax(-1) * batch.valid  # type: ignore[union-attr]
    rows = F.cross_entropy(distiller.student(batch.images).logits, batch.labels, reduction="none")  # type: ignore[arg-type]
    losses = distiller(batch, said)
    assert list(losses) == ["ce"]
    torch.testing.assert_close(losses["ce"], 2 * (weights * rows).sum() / weights.sum())
    assert method.needs().couples == "micro-batch"
    said["teacher"].logits = torch.zeros(len(rows), 10)
    torch.testing.assert_close(distiller(batch, said)["ce"], 2 * rows[batch.valid].mean())
    with pytest.raises(ValidationError, match="learns from labels alone"):
        BAN(variant="cwtm", labels=False)


def test_wrong_classes_are_exchanged_by_sample_and_step() -> None:
    method = BAN(variant="dkpp", labels=False, temperature=2.0)
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch, seen = drawn_batch(), []
    said = taught(method, context, batch)
    student, teacher = distiller.student(batch.images).logits, said["teacher"].logits
    for step in (3, 4, 3):
        distiller.before_step(replace(CLOCK, step=step))
        seen.append(distiller(batch, said)["kd"].detach())
    assert seen[0] == seen[2] != seen[1]
    words = torch_fold(torch_fold(distiller.draws, batch.position)[:, None], torch.arange(10))  # type: ignore[arg-type]
    torch.testing.assert_close(seen[0], kd_kl(student, permuted(teacher, words), 2.0).mean().detach())  # type: ignore[arg-type]


def test_a_permutation_does_not_ask_who_else_is_in_the_batch() -> None:
    method = BAN(variant="dkpp", labels=False)
    distiller, context = built(method, "cnn")
    distiller.eval().before_step(CLOCK)
    batch, parts = drawn_batch(), []
    for rows in (slice(None), slice(0, None, 2), slice(1, None, 2)):  # one rank, and each of two
        names = ("images", "labels", "index", "position", "repeat", "valid")
        mine = replace(batch, **{name: getattr(batch, name)[rows] for name in names})
        parts.append(distiller(mine, taught(method, context, mine))["kd"])
    torch.testing.assert_close(parts[0], (parts[1] + parts[2]) / 2)


# --- early stops ----------------------------------------------------------------------------------------------------------


def test_a_stopped_teacher_is_trained_first_on_a_shorter_curve() -> None:
    teacher, student = phases_of(ESKD(at=60))
    assert (teacher.epochs, student.epochs) == (60, 240)
    assert teacher.schedule == MultiStep((37.5, 45.0, 52.5))
    assert student.schedule == MultiStep()
    assert teacher.networks == {"teacher": Model("teacher-net")}
    assert student.networks["teacher"] == FromPhase("run-teacher", role="teacher")
    assert phases_of(ESKD(at=60, compress=False))[0].schedule == MultiStep()
    assert phases_of(ESKD(at=60, compress=False), schedule=Cosine())[0].schedule == Cosine(total=240.0)
    distiller, context = built(teacher.method, "cnn")  # type: ignore[arg-type]
    assert distiller.student is context.networks["teacher"]
    assert list(distiller(drawn_batch(), {})) == ["ce"]


def test_a_teacher_that_falls_silent_leaves_the_labels() -> None:
    method = ESKD(stop="distillation", at=1.0)
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch = drawn_batch()
    plain = F.cross_entropy(distiller.student(batch.images).logits, batch.labels)  # type: ignore[arg-type]
    for epoch, speaks in ((0.5, True), (1.0, False), (1.5, False)):
        distiller.before_step(at(epoch, 2.0))
        said = taught(method, context, batch, at(epoch, 2.0))
        assert bool(said) == speaks
        losses = distiller(batch, said)
        assert list(losses) == ["ce", "kd"]
        torch.testing.assert_close(losses["ce"], plain * (0.1 if speaks else 1.0))
        assert bool(losses["kd"] > 0) == speaks


def test_a_stop_that_never_comes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"has 240 epochs, and its teacher stops after at=240"):
        phases_of(ESKD(stop="distillation", at=240))
    with pytest.raises(RecipeError, match=r"has steps=9, and an early-stopped teacher.*in epochs"):
        phases_of(ESKD(), epochs=None, steps=9)


# --- rates ----------------------------------------------------------------------------------------------------------------

CURVES = [Constant(warmup=5), Cosine(warmup=5), Cosine(total=300, offset=12), MultiStep(warmup=2), MultiStep(offset=20)]


@pytest.mark.parametrize("schedule", CURVES, ids=str)
def test_a_cut_curve_runs_on(schedule: Any) -> None:
    first, rest = cut_at(schedule, 60.0, 240.0)
    for epoch in (0.0, 3.0, 59.9, 60.0, 100.0, 160.0, 239.0):
        whole = learning_rate(schedule, 0.05, at(epoch))
        part = learning_rate(first, 0.05, at(epoch, 60.0)) if epoch < 60 else learning_rate(rest, 0.05, at(epoch - 60, 180.0))
        assert part == pytest.approx(whole)


@pytest.mark.parametrize("schedule", CURVES, ids=str)
def test_a_compressed_curve_has_the_same_rates_sooner(schedule: Any) -> None:
    shorter = compressed(schedule, 0.25)
    for epoch in (0.0, 3.0, 60.0, 151.0, 181.0, 239.0):
        expected = learning_rate(schedule, 0.05, at(epoch))
        assert learning_rate(shorter, 0.05, at(epoch / 4, 60.0)) == pytest.approx(expected)


def test_a_curve_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(RecipeError, match="plateau"):
        cut_at(Plateau(), 60.0, 240.0)
    with pytest.raises(RecipeError, match="within its warm-up of 70"):
        cut_at(Constant(warmup=70), 60.0, 240.0)
    assert compressed(Plateau(), 0.25) == Plateau()
