"""Stored cases of SHAKE with several teachers, by its whole distiller on networks that have answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.methods import Shake
from kdscale.recipe import Phase
from kdscale.tasks import Classification
from kdscale.types import Context, DatasetInfo, Losses, Outputs

from ..golden import DTYPES, Case, methods_case, near
from ..methods.small import ALONE, NORMALISATION, SIZE
from ..test_golden import Said, Token, batch_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SOLVER = 1e-4
"""The stored weights of AEKD are a solver's, stopped at 1e-6 of its own dual problem."""


class Speaks(nn.Module):
    """A head that says what is stored, whatever it reads."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def losses_of(method: Shake, student: Said, shadows: dict[str, Tensor], teachers: list[Tensor], labels: Tensor) -> Losses:
    said = {role: Outputs(logits) for role, logits in zip(method.roles, teachers, strict=True)}
    networks = {"student": student} | {role: Said(outputs) for role, outputs in said.items()}
    info = DatasetInfo("golden", 1, student.classes, None, *NORMALISATION, SIZE)
    context = Context(networks, None, info, ALONE, Classification(), Phase(method, steps=1), 0)  # type: ignore[arg-type]
    distiller: Any = method.build(context)
    for name, logits in shadows.items():
        assert isinstance(getattr(distiller, name), nn.Module)
        setattr(distiller, name, Speaks(logits))
    losses: Losses = distiller(batch_of(labels), said)
    return losses


def summed(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def case_of(dtype: torch.dtype) -> tuple[Case, Said, list[Tensor], list[Tensor]]:
    case = methods_case("shake_multi", dtype)
    numbers = range(1, case.hyper["teachers"] + 1)
    student = case.given["student_logits"]
    shadows = [case.given[f"shadow{k}_logits"] for k in numbers]
    teachers = [case.given[f"teacher{k}_logits"].detach() for k in numbers]
    return case, Said(Outputs(student, {"pooled": student.detach()})), shadows, teachers


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_head_for_each_teacher(reduction: Any, dtype: torch.dtype) -> None:
    case, student, shadows, teachers = case_of(dtype)
    method = Shake(case.hyper["T"], weight=case.hyper["lambda_"], teachers=len(teachers), teacher_reduction=reduction)
    heads = {f"shadow{k}": logits for k, logits in enumerate(shadows, 1)}
    losses = losses_of(method, student, heads, teachers, case.given["labels"])
    case.value(f"loss_{reduction}", summed(losses))
    if reduction == "mean":
        for name in ("student", *heads):
            (gradient,) = torch.autograd.grad(summed(losses), case.given[f"{name}_logits"], retain_graph=True)
            near(gradient, case.stored[f"grad.{name}_mean"], case.tolerance.gradient, case.tolerance.floor)


@every_dtype
def test_one_head_follows_the_mean_of_the_terms(dtype: torch.dtype) -> None:
    case, student, shadows, teachers = case_of(dtype)
    method = Shake(case.hyper["T"], weight=case.hyper["lambda_"], teachers=len(teachers), heads="one")
    losses = losses_of(method, student, {"shadow": shadows[0]}, teachers, case.given["labels"])
    assert list(losses) == ["ce", "student<-shadow", "shadow<-student", *(f"shadow<-{role}" for role in method.roles)]
    case.value("loss_single_aver", summed(losses))


def aekd_case(dtype: torch.dtype) -> tuple[Case, Tensor, list[Tensor]]:
    case = methods_case("aekd", dtype)
    return case, case.given["student_logits"], [case.given[f"teacher{k}_logits"].detach() for k in (1, 2, 3)]


@every_dtype
@pytest.mark.parametrize(("entry", "normalise"), [("c06", False), ("c06_norm", True)])
def test_aekd_weighs_what_the_student_learns_of_each_shadow(entry: str, normalise: bool, dtype: torch.dtype) -> None:
    """The stored teachers as shadows: the student's terms are AEKD's own loss, and a shadow's keep 1/K."""
    case, student, others = aekd_case(dtype)
    method = Shake(case.hyper["T"], teachers=3, weights="aekd", tolerance=0.6, normalise_gradients=normalise)
    heads = {f"shadow{k}": logits.clone().requires_grad_() for k, logits in enumerate(others, 1)}
    said = Said(Outputs(student, {"pooled": student.detach()}))
    losses = losses_of(method, said, heads, others, case.given["labels"])
    near(losses["ce"] + sum(losses[f"student<-{name}"] for name in heads), case.stored[f"loss_{entry}"], SOLVER)
    alike = losses_of(Shake(case.hyper["T"], teachers=3), said, heads, others, case.given["labels"])
    for name in heads:
        torch.testing.assert_close(losses[f"{name}<-student"], alike[f"{name}<-student"])


@every_dtype
@pytest.mark.parametrize("token", [False, True])
def test_aekd_weighs_what_one_head_learns_of_each_teacher(token: bool, dtype: torch.dtype) -> None:
    """The stored student as the shadow: its terms are AEKD's own, on a convolutional student as on a token."""
    case, shadow, teachers = aekd_case(dtype)
    settings: dict[str, Any] = {"teachers": 3, "heads": "one", "weights": "aekd", "hard": False, "alpha": 1.0}
    other = torch.zeros_like(shadow).detach().requires_grad_()
    student = Token(other, shadow) if token else Said(Outputs(other, {"pooled": other.detach()}))
    method = Shake(case.hyper["T"], **settings)
    losses = losses_of(method, student, {} if token else {"shadow": shadow}, teachers, case.given["labels"])
    expected = (case.stored["weights_c06"] * torch.stack([case.stored[f"kl{k}"] for k in (1, 2, 3)])).sum()
    near(sum(losses[f"shadow<-{role}"] for role in method.roles), expected, SOLVER)  # type: ignore[arg-type]


@every_dtype
def test_the_alpha_divergence_takes_the_place_of_every_kd_term(dtype: torch.dtype) -> None:
    """The stored pair as student and shadow: the surrogate's gradient, and the larger divergence as the number that is seen."""
    case = methods_case("alpha_divergence", dtype)
    student, shadow = case.given["student_logits"], case.given["teacher_logits"]
    said = Said(Outputs(student, {"pooled": student.detach()}))
    labels = torch.zeros(len(student)).long()
    losses = losses_of(Shake(divergence="alpha"), said, {"shadow": shadow}, [student.detach()], labels)
    larger = torch.maximum(case.stored["divergence_left"], case.stored["divergence_right"])
    case.gradients(losses["student<-shadow"], "grad.", ["student_logits"])
    near(losses["student<-shadow"], larger.mean(), case.tolerance.loss)
    torch.testing.assert_close(losses["shadow<-student"], losses["shadow<-teacher"])
