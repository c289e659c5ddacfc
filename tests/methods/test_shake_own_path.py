"""SHAKE's shadow as a path of its own: own batch norms, part of the width, another network, a copy of the teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdscale.errors import NetworkError
from kdscale.methods import Shake
from kdscale.networks import Network

from .small import CLASSES, built, drawn_batch, taught

BATCH = drawn_batch()
PATHS = {
    "norms": Shake(own_bn=True),
    "half": Shake(own_bn=True, width=0.5),
    "network": Shake(proxy="network"),
    "copy": Shake(proxy="teacher_copy"),
}


def losses_of(method: Shake, kind: str = "cnn") -> tuple[dict[str, Tensor], Any, Any]:
    distiller, context = built(method, kind)
    return distiller(BATCH, taught(method, context, BATCH)), distiller, context


@pytest.mark.parametrize("method", PATHS.values(), ids=PATHS.keys())
def test_the_losses_are_those_of_any_shadow_and_its_answer_is_seen(method: Shake) -> None:
    losses, distiller, _ = losses_of(method)
    assert set(losses) == {"ce", "student<-shadow", "shadow<-student", "shadow<-teacher"}
    assert list(distiller.parts()) == ["student", "shadow"]
    assert list(distiller.eval()(BATCH)) == ["student", "shadow"]


@pytest.mark.parametrize("method", PATHS.values(), ids=PATHS.keys())
def test_which_shadows_train_the_students_convolutions(method: Shake) -> None:
    losses, distiller, _ = losses_of(method)
    student = [m.weight for m in distiller.student.modules() if isinstance(m, nn.Conv2d)]
    norms = [m.weight for m in distiller.student.modules() if isinstance(m, nn.BatchNorm2d)]
    gradients = torch.autograd.grad(losses["shadow<-teacher"], student + norms, allow_unused=True)
    assert all((g is not None) == method.own_bn for g in gradients[: len(student)])
    assert all(g is None for g in gradients[len(student) :])
    assert method.needs().whole_weights == method.own_bn


def test_a_second_path_has_norms_and_a_classifier_to_itself() -> None:
    for width in (1.0, 0.5):
        _, distiller, _ = losses_of(Shake(own_bn=True, width=width))
        kinds = {type(m).__name__ for m in distiller.shadow.modules() if list(m.parameters(recurse=False))}
        assert kinds == {"BatchNorm2d", "Linear"}
        assert distiller.shadow.head.in_features == round(distiller.student.width * width)


def test_a_proxy_is_another_student_from_scratch() -> None:
    _, distiller, _ = losses_of(PATHS["network"])
    student, shadow = (n.body.state_dict() for n in (distiller.student, distiller.shadow))
    assert {n: t.shape for n, t in student.items()} == {n: t.shape for n, t in shadow.items()}
    assert not torch.equal(student["conv1.weight"], shadow["conv1.weight"])


def test_a_copied_teacher_begins_as_the_teacher_and_leaves_it_alone() -> None:
    method = PATHS["copy"]
    _, distiller, context = losses_of(method)
    teacher = context.networks["teacher"]
    assert isinstance(distiller.shadow, Network)
    assert all(p.requires_grad for p in distiller.shadow.parameters())
    fresh, _ = built(method, "cnn")
    torch.testing.assert_close(fresh.eval()(BATCH)["shadow"], teacher(BATCH.images).logits)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_several_teachers_have_a_path_each() -> None:
    losses, distiller, _ = losses_of(Shake(teachers=2, own_bn=True, width=0.75))
    assert list(distiller.parts()) == ["student", "shadow1", "shadow2"]
    assert {"shadow1<-teacher", "shadow2<-teacher2"} <= set(losses)


def test_a_proxy_serves_a_student_with_a_token() -> None:
    losses, distiller, _ = losses_of(PATHS["network"], "token")
    assert set(losses) == {"ce", "student<-shadow", "shadow<-student", "shadow<-teacher"}
    assert distiller.shadow.has_distillation_head


@pytest.mark.parametrize(("head", "count"), [("linear", 16 * 2), ("fused", 0)])
def test_a_narrow_head_reads_the_leading_channels(head: Any, count: int) -> None:
    method = Shake(head=head, width=0.5, width_applies_to="head")
    losses, distiller, _ = losses_of(method)
    whole, _ = built(Shake(head=head), "cnn")
    sizes = [sum(p.numel() for p in d.shadow.parameters()) for d in (distiller, whole)]
    assert sizes[0] < sizes[1]
    if head == "linear":
        assert sizes[0] == count * CLASSES + CLASSES
    assert not method.needs().whole_weights
    assert "student<-shadow" in losses


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "code", "own_bn": True}, "reads the teacher's features"),
        ({"form": "code", "proxy": "network"}, "reads the teacher's features"),
        ({"proxy": "network", "own_bn": True}, "shares nothing with the student"),
        ({"proxy": "teacher_copy", "width": 0.5}, "shares nothing with the student"),
        ({"proxy": "network", "head": "fused"}, "leave head='fused' out"),
        ({"own_bn": True, "head": "token"}, "leave head='token' out"),
        ({"own_bn": True, "detach_features": True}, "leave detach_features out"),
        ({"width": 0.5}, "set own_bn=true"),
        ({"own_bn": True, "width_applies_to": "head"}, "leave one of the two out"),
        ({"width": 0.5, "width_applies_to": "head", "head": "token"}, "is of channels"),
        ({"width": 0.0}, "greater than 0"),
        ({"width": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_contradict_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Shake(**settings)


@pytest.mark.parametrize("method", [Shake(own_bn=True), Shake(width=0.5, width_applies_to="head")])
def test_a_token_has_no_batch_norms_and_no_channels(method: Shake) -> None:
    with pytest.raises(NetworkError):
        built(method, "token")
