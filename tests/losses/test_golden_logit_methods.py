"""Stored cases of what methods make of logits alone, by the losses and by whole distillers on networks that have answered."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.losses import aekd, alpha_divergence
from kdscale.losses.dkd import decoupled
from kdscale.losses.logits import cross_entropy, kd_kl
from kdscale.methods import DKD, TAKD, AlphaDivergence, Method, MultiKD, ReverseKD
from kdscale.networks import Network
from kdscale.recipe import Phase, numbered
from kdscale.tasks import Classification
from kdscale.types import Context, DatasetInfo, Losses, Outputs

from ..golden import DTYPES, Case, baselines_case, methods_case, near
from ..methods.small import ALONE, NORMALISATION, SIZE
from ..test_golden import Said, batch_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def pair(case: Case, student: str, teacher: str) -> tuple[Tensor, Tensor]:
    return case.given[student], case.given[teacher].detach()


@every_dtype
@pytest.mark.parametrize("name", ["simple_0.5", "simple_2.0", "simple_-1.0"])
def test_the_exact_divergence(name: str, dtype: torch.dtype) -> None:
    case = baselines_case("logits.safetensors", f"alpha/{name}", dtype)
    loss = alpha_divergence.divergence(*pair(case, "student", "teacher"), case.hyper["alpha"]).mean()
    case.value("out/loss", loss)
    case.gradients(loss, "grad/", ["student"])


@every_dtype
@pytest.mark.parametrize("name", ["m1_clip5", "p1_clip5", "0_clip5", "0.5_noclip", "2_clip5", "m1_noclip"])
def test_the_surrogate_and_its_value(name: str, dtype: torch.dtype) -> None:
    case = baselines_case("logits.safetensors", f"alpha/{name}", dtype)
    said, (alpha, clip) = pair(case, "student", "teacher"), (case.hyper["alpha"], case.hyper["iw_clip"])
    rows = alpha_divergence.surrogate(*said, alpha, clip)
    case.value("out/surrogate_per_sample", rows)
    case.value("out/value_per_sample", alpha_divergence.value(*said, alpha, clip))
    case.value("out/loss", rows.mean())
    case.gradients(rows.mean(), "grad/", ["student"])


@every_dtype
def test_the_adaptive_form(dtype: torch.dtype) -> None:
    case = baselines_case("logits.safetensors", "alpha/adaptive", dtype)
    low, high, clip = (case.hyper[name] for name in ("alpha_min", "alpha_max", "iw_clip"))
    loss = alpha_divergence.adaptive(*pair(case, "student", "teacher"), low, high, clip).mean()
    case.value("out/loss", loss)
    case.gradients(loss, "grad/", ["student"])


@every_dtype
def test_the_adaptive_form_of_the_published_program(dtype: torch.dtype) -> None:
    case = methods_case("alpha_divergence", dtype)
    said, clip = pair(case, "student_logits", "teacher_logits"), case.hyper["iw_clip"]
    loss = alpha_divergence.adaptive(*said, case.hyper["alpha_min"], case.hyper["alpha_max"], clip).mean()
    case.value("surrogate", loss)
    case.gradients(loss, "grad.", ["student_logits"])
    case.value("divergence_left", alpha_divergence.value(*said, case.hyper["alpha_min"], clip))
    case.value("divergence_right", alpha_divergence.value(*said, case.hyper["alpha_max"], clip))


AEKD = {"c06": (0.6, False), "c06_norm": (0.6, True), "c10": (1.0, False), "c034": (0.34, False)}
SOLVER = 1e-4
"""The stored weights are a solver's, stopped at 1e-6 of its own dual problem."""


@every_dtype
@pytest.mark.parametrize("entry", AEKD)
def test_weights_of_three_teachers(entry: str, dtype: torch.dtype) -> None:
    case = methods_case("aekd", dtype)
    student, teachers = case.given["student_logits"], [case.given[f"teacher{k}_logits"].detach() for k in (1, 2, 3)]
    gradients = torch.stack([aekd.mean_gradient(student, t, case.hyper["T"]) for t in teachers])
    weights = aekd.aekd_weights(gradients, *AEKD[entry])
    assert weights.dtype == dtype
    near(weights, case.stored[f"weights_{entry}"], SOLVER, SOLVER)
    terms = torch.stack([kd_kl(student, t, case.hyper["T"]).mean() for t in teachers])
    for number, term in enumerate(terms, 1):
        case.value(f"kl{number}", term)
    labels = cross_entropy(student, case.given["labels"]).mean()
    near(labels + (weights * terms).sum(), case.stored[f"loss_{entry}"], SOLVER)
    case.value("loss_aver", labels + terms.mean())
    # Stored: of gradients that carry the 1/B of a mean over the batch, averaged over the batch once more.
    near(gradients.double() @ gradients.double().T / len(student) ** 2, case.stored["gram"], 1e-5)


# --- whole distillers -----------------------------------------------------------------------------------------------------


class Answered(Said):
    expanded = Network.expanded  # of no taps


def losses_of(method: Method, trained: dict[str, Tensor], frozen: dict[str, Tensor], labels: Tensor) -> Losses:
    """What the method's distiller says where each network has answered so."""
    networks = {role: Answered(Outputs(logits)) for role, logits in (trained | frozen).items()}
    classes = trained["student"].shape[-1]
    info = DatasetInfo("golden", 1, classes, None, *NORMALISATION, SIZE)
    context = Context(networks, None, info, ALONE, Classification(), Phase(method, steps=1), 0)  # type: ignore[arg-type]
    taught = {role: networks[role].outputs for role in frozen}
    losses: Losses = method.build(context)(batch_of(labels), taught)
    return losses


def summed(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@every_dtype
@pytest.mark.parametrize("name", ["b8_T4", "b2_T4", "b05_T1"])
def test_decoupled_distillation(name: str, dtype: torch.dtype) -> None:
    case = baselines_case("logits.safetensors", f"dkd/{name}", dtype)
    student, teacher = pair(case, "student", "teacher")
    hyper, labels = case.hyper, case.given["labels"]
    label, rest = decoupled(student, teacher, labels, hyper["T"])
    case.value("out/tckd", label.mean())
    case.value("out/nckd", rest.mean())
    method = DKD(temperature=hyper["T"], ce=0.0, alpha=hyper["alpha"], beta=hyper["beta"])
    loss = summed(losses_of(method, {"student": student}, {"teacher": teacher}, labels))
    case.value("out/loss", loss)
    case.gradients(loss, "grad/", ["student"])


@every_dtype
def test_the_adaptive_method_has_the_gradient_of_the_surrogate_and_the_number_of_the_divergence(dtype: torch.dtype) -> None:
    case = methods_case("alpha_divergence", dtype)
    student, teacher = pair(case, "student_logits", "teacher_logits")
    loss = losses_of(AlphaDivergence(), {"student": student}, {"teacher": teacher}, torch.zeros(len(student)).long())["alpha"]
    worse = torch.maximum(case.stored["divergence_left"], case.stored["divergence_right"])
    near(loss, worse.mean(), case.tolerance.loss)
    case.gradients(loss, "grad.", ["student_logits"])


@every_dtype
@pytest.mark.parametrize("entry", ["aver", *AEKD])
def test_several_teachers(entry: str, dtype: torch.dtype) -> None:
    case = methods_case("aekd", dtype)
    teachers = {role: case.given[f"teacher{k}_logits"].detach() for k, role in enumerate(numbered("teacher", 3), 1)}
    method = MultiKD(temperature=case.hyper["T"])
    if entry != "aver":
        tolerance, normalise = AEKD[entry]
        method = dataclasses.replace(method, weights="aekd", tolerance=tolerance, normalise_gradients=normalise)
    losses = losses_of(method, {"student": case.given["student_logits"]}, teachers, case.given["labels"])
    near(summed(losses), case.stored[f"loss_{entry}"], case.tolerance.loss if entry == "aver" else SOLVER)


@every_dtype
@pytest.mark.parametrize(("reduction", "entry"), [("batch", "kl_batchmean_T5"), ("elementwise", "takd_code_kl_T5")])
def test_the_two_reductions_of_teacher_assistants(reduction: Any, entry: str, dtype: torch.dtype) -> None:
    case = methods_case("logit_kd", dtype)
    student, teacher = pair(case, "student_logits", "teacher_logits")
    method = TAKD(temperature=5.0, ce=0.0, kd=1.0, reduction=reduction, learner="student")
    losses = losses_of(method, {"student": student}, {"assistant": teacher}, case.given["labels"])
    case.value(entry, losses["kd"])


@every_dtype
@pytest.mark.parametrize("update", ["all", "first"])
def test_distillation_both_ways(update: Any, dtype: torch.dtype) -> None:
    case = methods_case("mutual", dtype)
    networks = {"student": case.given["net1"], "teacher": case.given["net2"]}
    method = ReverseKD(temperature=case.hyper["T_dagger"], update=update)
    loss = summed(losses_of(method, networks, {}, case.given["labels"]))
    case.value("loss_kd_dagger", loss)
    case.gradients(loss, "grad_dml_T4.", ["net1", "net2"])
