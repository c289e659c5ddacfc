"""SHAKE with several teachers: who follows whom, with which weight, on features as on a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdscale.errors import NetworkError
from kdscale.methods import Shake
from kdscale.types import World

from .small import ALONE, built, drawn_batch, taught

BATCH = drawn_batch()


def losses_of(method: Shake, kind: str = "cnn") -> tuple[dict[str, Tensor], Any]:
    distiller, context = built(method, kind)
    return distiller(BATCH, taught(method, context, BATCH)), distiller


def test_each_head_follows_its_own_teacher_and_speaks_with_the_student_alone() -> None:
    losses, distiller = losses_of(Shake(teachers=3))
    roles = {"shadow1": "teacher", "shadow2": "teacher2", "shadow3": "teacher3"}
    mutual = {f"{a}<-{b}" for n in roles for a, b in (("student", n), (n, "student"))}
    assert set(losses) == {"ce"} | mutual | {f"{name}<-{role}" for name, role in roles.items()}
    for name, role in roles.items():
        for other in roles:
            heads = list(distiller.get_submodule(other).parameters())
            learned = losses[f"{name}<-{role}"] + losses[f"{name}<-student"] + 0 * heads[0].sum()
            reached = torch.autograd.grad(learned, heads, allow_unused=True, retain_graph=True)
            assert any(g is not None and bool(g.any()) for g in reached) == (other == name)
    assert list(distiller.eval()(BATCH)) == ["student", *roles]


def test_weights_on_all_multiply_a_heads_own_terms_too() -> None:
    settings: dict[str, Any] = {"teachers": 2, "weights": "aekd", "tolerance": 1.0}
    own, _ = losses_of(Shake(**settings))
    everything, _ = losses_of(Shake(**settings, weights_on="all"))
    for k, role in ((1, "teacher"), (2, "teacher2")):
        torch.testing.assert_close(everything[f"student<-shadow{k}"], own[f"student<-shadow{k}"])
        mean, _ = losses_of(Shake(teachers=2))
        factor = own[f"student<-shadow{k}"] / mean[f"student<-shadow{k}"]
        torch.testing.assert_close(everything[f"shadow{k}<-{role}"], factor * own[f"shadow{k}<-{role}"])


def test_aekd_asks_all_ranks_for_one_combination() -> None:
    """Where a second rank has the opposite gradient of the first teacher's term, both ranks have other weights."""
    method = Shake(teachers=2, weights="aekd", tolerance=1.0)
    asked: list[Tensor] = []

    def total(gradients: Tensor) -> Tensor:
        asked.append(gradients)
        return gradients

    distiller, context = built(method, "cnn")
    distiller.world = World(0, 1, ALONE.gather, total)
    distiller(BATCH, taught(method, context, BATCH))
    assert [tuple(g.shape) for g in asked] == [(2, 10)]


def test_the_token_follows_the_mean_of_the_teachers_terms() -> None:
    method = Shake(teachers=2)
    distiller, context = built(method, "token")
    said = taught(method, context, BATCH)
    losses = distiller.eval()(BATCH, said)
    assert list(distiller.parts()) == ["student"]
    alone, _ = built(Shake(), "token")
    alone.eval()
    for role in method.roles:
        torch.testing.assert_close(losses[f"shadow<-{role}"], alone(BATCH, {"teacher": said[role]})["shadow<-teacher"] / 2)
    torch.testing.assert_close(losses["student<-shadow"], alone(BATCH, {"teacher": said["teacher"]})["student<-shadow"])


def test_heads_for_each_teacher_of_a_token_read_the_token() -> None:
    losses, distiller = losses_of(Shake(teachers=2, heads="each"), "token")
    assert {"student<-shadow1", "shadow1<-teacher", "student<-shadow2", "shadow2<-teacher2"} <= set(losses)
    assert list(distiller.parts()) == ["student", "shadow2"]
    said = distiller.eval()(BATCH)
    assert set(said) == {"student", "class", "shadow1", "shadow2"}
    body = distiller.student.body
    with torch.no_grad():
        distiller.shadow2.weight.copy_(body.head_dist.weight)
        distiller.shadow2.bias.copy_(body.head_dist.bias)
        again = distiller(BATCH)
    torch.testing.assert_close(again["shadow2"], again["shadow1"])
    torch.testing.assert_close(again["student"], (again["class"] + again["shadow1"]) / 2)


def test_the_code_form_reads_each_teacher_by_its_own_classifier() -> None:
    losses, distiller = losses_of(Shake(form="code", teachers=2))
    assert {"shadow1<-teacher", "shadow2<-teacher2", "shadow1<-ce", "shadow2<-ce"} <= set(losses)
    buffers = dict(distiller.named_buffers())
    assert not torch.equal(buffers["classifier"], buffers["classifier2"])


def test_what_is_coupled_is_said() -> None:
    assert Shake(teachers=2).needs().couples is None
    assert Shake(teachers=2, weights="aekd").needs().couples == "micro-batch"
    assert Shake(form="code", teachers=2).needs().taps == dict.fromkeys(("teacher", "teacher2"), ("stages",))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "code", "teachers": 2, "heads": "one"}, "take heads='each'"),
        ({"weights": "aekd"}, "teachers=1"),
        ({"weights": "aekd", "teachers": 9}, "at most 8"),
        ({"weights": "aekd", "teachers": 2, "tolerance": 0.4}, "cannot add up to 1"),
        ({"weights": "aekd", "teachers": 2, "divergence": "alpha"}, "take one of the two"),
        ({"weights": "aekd", "teachers": 2, "heads": "one", "proxy_signal": "l2"}, "take 'kl' or 'ce'"),
    ],
)
def test_settings_that_contradict_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Shake(**settings)


def test_aekd_of_one_token_needs_terms_with_a_temperature() -> None:
    with pytest.raises(NetworkError, match="hard=false"):
        built(Shake(teachers=2, weights="aekd"), "token")
