"""Stored cases of networks that learn together, by the losses and by whole distillers on networks that have answered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.losses import kdcl, online
from kdscale.losses.logits import soft_cross_entropy
from kdscale.methods import DML, KDCL, ONE, Distiller, Method, OKDDip
from kdscale.recipe import Phase
from kdscale.tasks import Classification
from kdscale.types import Context, DatasetInfo, Outputs, Progress

from ..golden import DTYPES, Case, methods_case, near
from ..methods.small import ALONE, NORMALISATION, built
from ..test_golden import Said, batch_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def made(method: Method, networks: list[Said]) -> Any:
    """The method's distiller on ``networks``: the student and its peers."""
    roles = dict(zip(method.needs().trained, networks, strict=True))
    info = DatasetInfo("golden", 1, networks[0].classes, None, *NORMALISATION, 8)
    distiller: Distiller = method.build(Context(roles, None, info, ALONE, Classification(), Phase(method, steps=6), 0))  # type: ignore[arg-type]
    return distiller.train()


def summed(losses: dict[str, Tensor], *words: str) -> Tensor:
    """The losses whose names end in one of ``words``, or all."""
    return torch.stack([loss for name, loss in losses.items() if name.endswith(words or ("",))]).sum()


# --- mutual ---------------------------------------------------------------------------------------------------------------

MUTUAL = {
    "dml": DML(),
    "dml_T4": DML(temperature=4),
    "dml_dagger": DML(temperature=4, one_way=True),
    "okddip_code": DML(form="okddip"),
}


@every_dtype
@pytest.mark.parametrize("entry", MUTUAL)
def test_mutual(entry: str, dtype: torch.dtype) -> None:
    case = methods_case("mutual", dtype)
    names = ["net1", "net2"]
    distiller = made(MUTUAL[entry], [Said(Outputs(case.given[name])) for name in names])
    loss = summed(distiller(batch_of(case.given["labels"]), {}))
    case.value(f"loss_{entry}", loss)
    if f"grad_{entry}.net1" in case.stored:
        case.gradients(loss, f"grad_{entry}.", names)


# --- kdcl -----------------------------------------------------------------------------------------------------------------


def kdcl_case(dtype: torch.dtype) -> tuple[Case, Tensor, Tensor]:
    case = methods_case("kdcl", dtype)
    logits = torch.stack([case.given[f"net{i}_logits"] for i in (1, 2, 3)])
    return case, logits, kdcl.one_hot(case.given["labels"], logits)


@every_dtype
def test_targets_of_kdcl(dtype: torch.dtype) -> None:
    case, logits, truth = kdcl_case(dtype)
    case.value("naive_target", kdcl.naive(logits, truth))
    case.value("minlogit_target", kdcl.min_logit(logits, truth))
    case.value("mean_target", kdcl.mean(logits, truth))
    case.value("general_target", kdcl.combined(logits, case.stored["general_weights"]))
    weights = kdcl.linear_weights(logits, truth, torch.ones(4, dtype=torch.bool))
    near(weights, case.stored["linear_weights"], 1e-5)
    near(kdcl.combined(logits, weights), case.stored["linear_target"], 1e-5)
    objective = soft_cross_entropy(kdcl.combined(logits, weights), truth).mean()
    near(objective, case.stored["linear_objective"], 1e-9 if dtype == torch.float64 else 1e-6)


@every_dtype
def test_the_general_weights_of_kdcl(dtype: torch.dtype) -> None:
    """The stored ones have no ridge; with it they move by less than a millionth."""
    case, _, _ = kdcl_case(dtype)
    logits = torch.stack([case.given[f"val_net{i}_logits"] for i in (1, 2, 3)])
    labels = case.given["val_labels"]
    errors = kdcl.error_products(logits, kdcl.one_hot(labels, logits), labels >= 0) / len(labels)
    case.value("general_C", errors)
    case.value("general_weights", kdcl.general_weights(errors, ridge=0.0))
    near(kdcl.general_weights(errors), case.stored["general_weights"], 1e-5)


@every_dtype
@pytest.mark.parametrize("variant", ["naive", "linear", "min_logit", "general", "mean"])
def test_kdcl(variant: Any, dtype: torch.dtype) -> None:
    case, _, _ = kdcl_case(dtype)
    method = KDCL(variant=variant, students=3, temperature=case.hyper["T"], weight=case.hyper["lambda_"])
    distiller = made(method, [Said(Outputs(case.given[f"net{i}_logits"])) for i in (1, 2, 3)])
    if variant == "general":
        distiller.errors.weights.copy_(case.stored["general_weights"])
    loss, entry = summed(distiller(batch_of(case.given["labels"]), {})), variant.replace("_", "")
    exact = case.tolerance.loss if variant != "linear" else 1e-5
    near(loss, case.stored[f"loss_{entry}"], exact)
    (gradient,) = torch.autograd.grad(loss, case.given["net1_logits"])
    near(gradient, case.stored[f"grad_{entry}.net1"], exact)


# --- one ------------------------------------------------------------------------------------------------------------------


class Stored(nn.Module):
    """Answers with one tensor, whatever it is asked."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def forward(self, *_: Tensor) -> Tensor:
        return self.tensor


@every_dtype
def test_one(dtype: torch.dtype) -> None:
    case = methods_case("one", dtype)
    names = ["branch1", "branch2", "branch3"]
    distiller: Any = built(ONE(temperature=case.hyper["T"]), "cnn")[0]
    said = {role: Outputs(case.given[name]) for role, name in zip(distiller.roles, names, strict=True)}
    distiller.continued = lambda shared: said
    distiller.gate.linear = Stored(case.given["gate_input"])
    distiller.gate.norm.to(dtype)
    distiller.ramp = distiller.ramp.to(dtype)
    batch = batch_of(case.given["labels"])
    case.value("ensemble_logits", distiller.together(batch.images)[1])
    case.value("gate", distiller.gate(batch.images).softmax(-1))
    for epoch, entry in ((0.0, "loss_epoch0"), (40.9, "loss_epoch40"), (300.0, "loss_full")):
        distiller.before_step(Progress(0, 1, 0, epoch, 300.0))
        losses = distiller(batch, {})
        case.value(entry, summed(losses))
    case.value("ce", summed(losses, "ce"))
    case.value("kl", summed(losses, "<-ensemble"))
    case.gradients(summed(losses), "grad.", [*names, "gate_input"])


# --- okddip ---------------------------------------------------------------------------------------------------------------


@every_dtype
def test_okddip(dtype: torch.dtype) -> None:
    case = methods_case("okddip", dtype)
    given, peers = case.given, (1, 2, 3)
    networks = [Said(Outputs(given["leader"], {"pooled": given["feat1"]}))]
    networks += [Said(Outputs(given[f"peer{i}"], {"pooled": given[f"feat{i}"]})) for i in peers]
    for network in networks:
        network.width = given["feat1"].shape[1]
    distiller = made(OKDDip(form="network", temperature=case.hyper["T"]), networks)
    for name in ("query", "key"):
        part = getattr(distiller, name)
        assert part.weight.shape == given[name].shape
        del part.weight
        part.weight = given[name]
    said = dict(zip(distiller.roles, (network.outputs for network in networks), strict=True))
    case.value("peer_targets", torch.stack([t for role, t in distiller.targets(said).items() if role != "student"], -1))
    features = torch.stack([given[f"feat{i}"] for i in peers])
    scores = online.affinities(features @ given["query"].T, features @ given["key"].T)
    case.value("attention", scores.softmax(-1).transpose(0, 1))
    losses = distiller(batch_of(given["labels"]), {})
    case.value("ce_leader", losses["ce"])
    case.value("kl_leader", losses["student<-peers"])
    case.value("ce_peers", summed(losses, "<-ce"))
    case.value("kl_peers", summed({name: v for name, v in losses.items() if name.startswith("peer")}, "<-peers"))
    case.value("loss", summed(losses))
    case.gradients(summed(losses), "grad.", ["peer1", "peer2", "peer3", "feat1", "leader", "query", "key"])
