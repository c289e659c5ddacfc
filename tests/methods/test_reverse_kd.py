from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdscale.errors import RecipeError
from kdscale.losses.logits import kd_kl
from kdscale.methods import ReverseKD
from kdscale.recipe import SGD, Cosine, Data, FromPhase, Model, MultiStep, Part, Phase, Recipe, resolve

from .small import built, drawn_batch, total

BATCH = drawn_batch()


def phases_of(method: ReverseKD, **changes: Any) -> tuple[Phase, ...]:
    phase = Phase(method, **{"epochs": 240, "name": "run", "schedule": MultiStep()} | changes)
    return resolve(Recipe({role: Model(role) for role in ("student", "teacher")}, Data("drawn"), (phase,))).phases


def test_each_learns_from_labels_and_from_the_other() -> None:
    distiller, context = built(ReverseKD(kd=2.0), "cnn")
    distiller.eval()
    losses = distiller(BATCH, {})
    student, teacher = (context.networks[role](BATCH.images).logits for role in ("student", "teacher"))
    torch.testing.assert_close(losses["ce"], F.cross_entropy(student, BATCH.labels))
    torch.testing.assert_close(losses["teacher<-ce"], F.cross_entropy(teacher, BATCH.labels))
    torch.testing.assert_close(losses["student<-teacher"], 2 * kd_kl(student, teacher, 4.0).mean())
    torch.testing.assert_close(losses["teacher<-student"], 2 * kd_kl(teacher, student, 4.0).mean())
    assert list(distiller.eval()(BATCH)) == ["student", "teacher"]


def test_the_target_is_detached_on_both_ways() -> None:
    distiller, _ = built(ReverseKD(), "cnn")
    losses = distiller(BATCH, {})
    for name, learner, target in (
        ("student<-teacher", distiller.student, distiller.get_submodule("teacher")),
        ("teacher<-student", distiller.get_submodule("teacher"), distiller.student),
    ):
        for network, reached in ((learner, True), (target, False)):
            gradients = torch.autograd.grad(losses[name], list(network.parameters()), allow_unused=True, retain_graph=True)
            assert any(g is not None for g in gradients) == reached


def test_a_teacher_may_do_without_labels() -> None:
    assert "teacher<-ce" not in built(ReverseKD(teacher_labels=False), "cnn")[0](BATCH, {})


def test_the_whole_teacher_is_in_train_mode() -> None:
    distiller, context = built(ReverseKD(), "cnn")
    assert all(module.training for module in context.networks["teacher"].modules())
    assert list(distiller.parts()) == ["student", "teacher"]


@pytest.mark.parametrize("kind", ["cnn", "token"])
def test_a_head_is_trained_on_a_backbone_at_rest(kind: str) -> None:
    distiller, context = built(ReverseKD(update="head"), kind)
    teacher = context.networks["teacher"]
    trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
    heads = {"cnn": ("fc", "linear", "head"), "token": ("head", "head_dist")}[kind]
    assert trained
    assert all(name.split(".")[1] in heads for name in trained)
    norms = [m for m in teacher.modules() if any(True for _ in m.buffers(recurse=False)) and m is not teacher]
    assert not any(m.training for m in norms)
    before = {name: b.clone() for name, b in teacher.named_buffers()}
    total(distiller(BATCH, {})).backward()
    assert all(torch.equal(b, before[name]) for name, b in teacher.named_buffers())
    assert all((p.grad is not None) == p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in distiller.student.parameters())


def test_after_its_first_epochs_the_teacher_stands_still_on_the_same_curve() -> None:
    optimizer = SGD(0.05, parts={"teacher": Part(lr=0.1), "student": Part(decay=0.0)})
    both, alone = phases_of(ReverseKD(update="first"), optimizer=optimizer)
    assert (both.epochs, alone.epochs) == (60, 180)
    assert (both.schedule, alone.schedule) == (MultiStep(), MultiStep(offset=60))
    assert alone.networks == {
        "student": FromPhase("run-both"),
        "teacher": FromPhase("run-both", role="teacher"),
    }
    assert (both.optimizer, list(alone.optimizer.parts)) == (optimizer, ["student"])
    assert alone.method.needs().trained == ("student",)
    cosines = phases_of(ReverseKD(update="first"), schedule=Cosine(warmup=5))
    assert [p.schedule for p in cosines] == [Cosine(warmup=5, total=240), Cosine(total=240, offset=60)]


def test_first_epochs_that_are_all_are_refused() -> None:
    with pytest.raises(RecipeError, match="has 60 epochs, and its teacher learns in the first 60"):
        phases_of(ReverseKD(update="first"), epochs=60)
    with pytest.raises(RecipeError, match="in epochs"):
        phases_of(ReverseKD(update="first"), epochs=None, steps=100)
    assert len(phases_of(ReverseKD(), epochs=60)) == 1
