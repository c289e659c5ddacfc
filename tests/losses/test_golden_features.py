"""Stored cases of FitNets and attention transfer, through the distillers of the methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdscale.losses.features import attention_transfer
from kdscale.methods import AT, FitNets

from ..golden import DTYPES, Case, baselines_case, near
from ..methods.said import Said, built, losses_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def maps(case: Case, name: str) -> dict[str, Tensor]:
    """Stored maps of a network as its stages; a lone one is its second."""
    found = {n.removeprefix(name): t for n, t in case.given.items() if n.startswith(name)}
    return {f"stage{int(number) + 1 if number else 2}": t for number, t in found.items()}


@every_dtype
@pytest.mark.parametrize("name", ["same", "s2t", "t2s", "s_gt_t"])
def test_fitnets(name: str, dtype: torch.dtype) -> None:
    case = baselines_case("features.safetensors", f"fitnet/{name}", dtype)
    student, teacher = maps(case, "student"), maps(case, "teacher")
    weights = {n.removeprefix("p."): t for n, t in case.given.items() if n.startswith("p.")}
    distiller = built(FitNets(ce=0, weight=1), Said(student), Said(teacher)).to(dtype)
    distiller.term.regressor.load_state_dict(weights, strict=False)
    losses = losses_of(distiller, Said(teacher))
    case.value("out/loss", losses["fitnets"])
    case.value("out/adapted", distiller.term.regressor(student["stage2"]))
    case.gradients(losses["fitnets"], "grad/", ["student"])
    for parameter, tensor in distiller.term.regressor.named_parameters():
        (gradient,) = torch.autograd.grad(losses["fitnets"], tensor, retain_graph=True)
        near(gradient, case.stored[f"grad/p.{parameter}"], case.tolerance.gradient, case.tolerance.floor)


def attention_losses(weight: float, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    return losses_of(built(AT(ce=0, weight=weight), Said(student), Said(teacher)), Said(teacher))


@every_dtype
@pytest.mark.parametrize("name", ["same", "s_gt_t", "s_lt_t", "zero_sample"])
def test_attention_transfer_of_one_stage(name: str, dtype: torch.dtype) -> None:
    case = baselines_case("features.safetensors", f"at/{name}", dtype)
    losses = attention_losses(1, maps(case, "student"), maps(case, "teacher"))
    case.value("out/loss", losses["at"])
    case.gradients(losses["at"], "grad/", ["student"])


@every_dtype
def test_attention_transfer_of_three_stages(dtype: torch.dtype) -> None:
    case = baselines_case("features.safetensors", "at/three_taps", dtype)
    student, teacher = maps(case, "student"), maps(case, "teacher")
    losses = attention_losses(case.hyper["beta"], student, teacher)
    case.value("out/loss", losses["at"])
    case.gradients(losses["at"], "grad/", ["student0", "student1", "student2"])
    each = torch.stack([attention_transfer(student[stage], teacher[stage]).mean() for stage in student])
    case.value("out/per_tap", each)


def test_stages_are_paired_from_the_deep_end() -> None:
    case = baselines_case("features.safetensors", "at/three_taps", torch.float64)
    student, teacher = maps(case, "student"), maps(case, "teacher")
    shallow = {"stage1": torch.randn(2, 3, 16, 16)} | {f"stage{n + 1}": student[f"stage{n}"] for n in (1, 2, 3)}
    losses = attention_losses(case.hyper["beta"], shallow, teacher)
    case.value("out/loss", losses["at"])
