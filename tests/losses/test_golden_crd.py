"""Stored cases of contrastive representation distillation, through the distiller: two steps in a row, memories and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdscale.methods import Crd
from kdscale.types import Progress

from ..golden import DTYPES, Case, baselines_case, near
from ..methods.said import Said, built, losses_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EMBEDDINGS = {"embed_s.linear": "embed_student", "embed_t.linear": "embed_teacher"}


def distiller_of(case: Case) -> Any:
    """With the memories as they are before the case's step, and normalisers unset."""
    hyper, given = case.hyper, case.given
    method = Crd(
        ce=0, weight=1, negatives=hyper["K"], tau=hyper["T"], momentum=hyper["momentum"], width=hyper["feat_dim"]
    )  # fmt: skip
    networks = (Said({"pooled": given[name]}) for name in ("student", "teacher"))
    distiller = built(method, *networks, samples=hyper["n_data"]).to(given["student"].dtype)
    for name in ("student", "teacher"):
        distiller.term.get_buffer(f"memory_{name}").copy_(given[f"bank_{name}_before"].detach())
    return distiller


def step(distiller: Any, case: Case) -> None:
    """One step on a distiller that stands where the case begins: its loss, gradients, normalisers and new memories."""
    given, term = case.given, distiller.term
    for stored, name in EMBEDDINGS.items():
        weights = {part: given[f"p.{stored}.{part}"].detach() for part in ("weight", "bias")}
        term.get_submodule(name).load_state_dict(weights)
    distiller.before_step(Progress(0, 0, 0, 0.0, 1.0))
    term.negatives.forward = lambda *_: given["contrast_index"]
    distiller.student = Said({"pooled": given["student"]})
    loss = losses_of(distiller, Said({"pooled": given["teacher"]}), given["index"])["crd"]
    case.value("out/loss", loss)
    case.value("out/Z_student", term.normalisers[0])
    case.value("out/Z_teacher", term.normalisers[1])
    case.gradients(loss, "grad/", ["student"])
    for stored, name in EMBEDDINGS.items():
        for part, tensor in term.get_submodule(name).named_parameters():
            (gradient,) = torch.autograd.grad(loss, tensor, retain_graph=True)
            near(gradient, case.stored[f"grad/p.{stored}.{part}"], case.tolerance.gradient, case.tolerance.floor)
    distiller.after_step(Progress(0, 0, 0, 0.0, 1.0))
    for name in ("student", "teacher"):
        case.value(f"out/bank_{name}_after", term.get_buffer(f"memory_{name}"))


@every_dtype
def test_two_steps(dtype: torch.dtype) -> None:
    first, second = (baselines_case("contrastive.safetensors", f"crd/small/step{n}", dtype) for n in (1, 2))
    distiller = distiller_of(first)
    step(distiller, first)
    step(distiller, second)


@every_dtype
def test_one_negative(dtype: torch.dtype) -> None:
    case = baselines_case("contrastive.safetensors", "crd/K1/step1", dtype)
    step(distiller_of(case), case)


@every_dtype
def test_a_large_memory_whose_rows_are_gathered(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.losses.contrastive.WHOLE", 0)
    monkeypatch.setattr("kdscale.losses.contrastive.PIECE", 50)
    case = baselines_case("contrastive.safetensors", "crd/small/step1", dtype)
    step(distiller_of(case), case)
