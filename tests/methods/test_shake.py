from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdscale.errors import NetworkError
from kdscale.methods import Distiller, Shake
from kdscale.methods.shake.code import fused_stages
from kdscale.networks import build_network
from kdscale.recipe import Model
from kdscale.types import Context, Outputs, Progress

from .small import CLASSES, INFO, NORMALISATION, built, drawn_batch, taught, total

BATCH = drawn_batch()


def losses_of(distiller: Distiller, method: Shake, context: Context) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = distiller(BATCH, taught(method, context, BATCH))
    return losses


@pytest.mark.parametrize(("method", "kind"), [(Shake(), "cnn"), (Shake(), "token"), (Shake(head="linear"), "token")])
def test_one_recipe_line_serves_every_student(method: Shake, kind: str) -> None:
    distiller, context = built(method, kind)
    assert list(losses_of(distiller, method, context)) in (
        ["ce", "student<-shadow", "shadow<-student", "shadow<-teacher"],
        ["ce", "shadow<-teacher", "student<-shadow", "shadow<-student"],
    )
    assert list(distiller.parts()) == (["student"] if method.head == "auto" and kind == "token" else ["student", "shadow"])


def test_a_linear_shadow_costs_a_second_classifier() -> None:
    distiller, _ = built(Shake(), "cnn")
    width = distiller.student.width
    assert sum(p.numel() for p in distiller.parts()["shadow"].parameters()) == width * CLASSES + CLASSES


@pytest.mark.parametrize("head", ["linear", "fused"])
@pytest.mark.parametrize("detach", [False, True])
def test_the_shadow_trains_the_shared_features_unless_detached(head: Any, detach: bool) -> None:
    method = Shake(head=head, detach_features=detach)
    distiller, context = built(method, "cnn")
    losses = losses_of(distiller, method, context)
    gradients = torch.autograd.grad(losses["shadow<-teacher"], list(distiller.student.parameters()), allow_unused=True)
    assert all(g is None for g in gradients) == detach


def test_labels_do_not_reach_the_shadow_unless_asked() -> None:
    for method, reached in ((Shake(), False), (Shake(proxy_labels=True), True)):
        distiller, context = built(method, "cnn")
        losses = losses_of(distiller, method, context)
        assert ("shadow<-ce" in losses) == reached
        shadow = list(distiller.parts()["shadow"].parameters())
        assert all(g is None for g in torch.autograd.grad(losses["ce"], shadow, allow_unused=True))


def test_on_a_token_labels_and_teacher_keep_to_their_heads() -> None:
    method = Shake()
    distiller, context = built(method, "token")
    losses = losses_of(distiller, method, context)
    body = distiller.student.body
    heads = (body.head.weight, body.head_dist.weight)
    for name, own in {"ce": 0, "shadow<-teacher": 1, "student<-shadow": 0, "shadow<-student": 1}.items():
        gradients = torch.autograd.grad(losses[name], heads, allow_unused=True, retain_graph=True)
        assert gradients[own] is not None, name
        assert gradients[1 - own] is None, name


@pytest.mark.parametrize("inference", ["average", "class"])
def test_all_three_answers_of_a_token_student_are_measured(inference: Any) -> None:
    distiller, _ = built(Shake(inference=inference), "token")
    said = distiller.eval()(BATCH)
    average = (said["class"] + said["shadow"]) / 2
    torch.testing.assert_close(said["student"], average if inference == "average" else said["class"])
    if inference == "class":
        torch.testing.assert_close(said["average"], average)


def test_the_ramp_grows_by_whole_epochs_and_spares_the_labels() -> None:
    method = Shake(warmup_epochs=3)
    distiller, context = built(method, "cnn")
    distiller.eval()
    full = losses_of(distiller, method, context)
    for epoch, share in ((0.0, 1 / 3), (0.99, 1 / 3), (1.0, 2 / 3), (2.5, 1.0), (200.0, 1.0)):
        distiller.before_step(Progress(0, 1, 0, epoch, 240.0))
        ramped = losses_of(distiller, method, context)
        torch.testing.assert_close(ramped["ce"], full["ce"])
        torch.testing.assert_close(total(ramped) - ramped["ce"], share * (total(full) - full["ce"]))


def test_the_code_form_reads_the_teacher_and_leaves_the_student_alone() -> None:
    method = Shake(form="code")
    distiller, context = built(method, "cnn")
    teacher = context.networks["teacher"]
    losses = losses_of(distiller, method, context)
    assert set(losses) == {"ce", "student<-shadow", "shadow<-student", "shadow<-teacher", "shadow<-ce"}
    student = list(distiller.student.parameters())
    assert all(g is None for g in torch.autograd.grad(losses["shadow<-ce"], student, allow_unused=True, retain_graph=True))
    assert torch.equal(dict(distiller.named_buffers())["classifier"], teacher.head.weight)
    assert set(distiller.eval()(BATCH)) == {"student"}


def test_the_code_form_does_not_care_for_the_size_of_logits() -> None:
    """Its logits are normalised: a teacher that speaks ten times louder teaches the same."""
    method = Shake(form="code")
    distiller, context = built(method, "cnn")
    said = taught(method, context, BATCH)
    first = distiller(BATCH, said)["shadow<-teacher"]
    logits = said["teacher"].logits
    assert logits is not None
    loud = {"teacher": Outputs(logits * 10 + 3, said["teacher"].taps)}
    torch.testing.assert_close(distiller(BATCH, loud)["shadow<-teacher"], first, rtol=1e-4, atol=1e-5)


def test_each_form_has_its_own_defaults() -> None:
    paper, code = Shake(), Shake(form="code")
    assert (paper.signal, paper.labels, paper.scale) == ("kl", False, None)
    assert (code.signal, code.labels, code.scale) == ("l2", True, 3.1415)
    assert (Shake(logit_scale=2.0).scale, Shake(form="code", proxy_labels=False).labels) == (2.0, False)
    assert code.needs().taps == {"teacher": ("stages",)}


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="fused head alone"):
        Shake(form="code", head="linear")
    with pytest.raises(ValidationError):
        Shake(temperature=0.0)


def test_a_token_that_is_not_there_is_named() -> None:
    with pytest.raises(NetworkError, match="distillation token"):
        built(Shake(head="token"), "cnn")
    assert Shake(head="token").needs().distillation_head


@pytest.mark.parametrize(
    "setting", [{"proxy_signal": "l2"}, {"proxy_labels": True}, {"logit_scale": 3.0}, {"detach_features": True}]
)
def test_what_a_token_cannot_heed_is_refused_not_ignored(setting: dict[str, Any]) -> None:
    built(Shake(head="linear", **setting), "token")
    with pytest.raises(NetworkError, match=next(iter(setting))):
        built(Shake(**setting), "token")


@pytest.mark.parametrize(
    ("teacher", "stages"),
    [("wrn_16_1", "123"), ("vgg8", "123"), ("ResNet18", "234")],
    ids=["three stages", "a third as wide as the classifier's input", "neither: the last three"],
)
def test_the_published_head_reads_three_stages_that_fit(teacher: str, stages: str) -> None:
    network = build_network(Model(teacher), INFO, trained=False, seed=0, normalisation=NORMALISATION)
    assert fused_stages(network, network.width) == tuple(f"stage{number}" for number in stages)
