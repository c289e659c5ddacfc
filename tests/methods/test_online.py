"""Networks that learn together: who learns from whom, what is shared, and what is left when they part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdscale.errors import NetworkError
from kdscale.losses import kdcl
from kdscale.methods import DML, KDCL, ONE, Distiller, Method, OKDDip
from kdscale.methods.peers import gaussian_ramp
from kdscale.networks.branch import Gate
from kdscale.recipe import Model
from kdscale.types import Batch, Progress

from ..networks.making import build
from .small import ALONE, CLASSES, CLOCK, SIZE, built, context_of, drawn_batch, network

BATCH = drawn_batch()


def learns(loss: Tensor, part: torch.nn.Module) -> bool:
    gradients = torch.autograd.grad(loss, list(part.parameters()), allow_unused=True, retain_graph=True)
    return any(g is not None and g.abs().sum() > 0 for g in gradients)


def told(distiller: Distiller, batch: Batch = BATCH) -> dict[str, Tensor]:
    distiller.before_step(CLOCK)
    losses: dict[str, Tensor] = distiller(batch, {})
    return losses


# --- dml ------------------------------------------------------------------------------------------------------------------


def test_each_learns_from_the_others_and_teaches_none_back() -> None:
    distiller, _ = built(DML(students=3), "cnn")
    losses = told(distiller)
    assert list(losses) == ["ce", "peer1<-ce", "peer2<-ce", "student<-peers", "peer1<-peers", "peer2<-peers"]
    for role in distiller.roles:
        reached = [other for other in distiller.roles if learns(losses[f"{role}<-peers"], distiller.get_submodule(other))]
        assert reached == [role]


def test_one_way_the_student_alone_listens() -> None:
    losses = told(built(DML(one_way=True), "cnn")[0])
    assert list(losses) == ["ce", "peer1<-ce", "student<-peers"]


def test_the_form_of_okddip_learns_through_its_targets() -> None:
    method = DML(form="okddip")
    distiller, _ = built(method, "cnn")
    assert (method.softness, DML().softness, DML(temperature=4).softness) == (3.0, 1.0, 4.0)
    assert learns(told(distiller)["student<-peers"], distiller.get_submodule("peer1"))
    with pytest.raises(ValidationError, match="one_way"):
        DML(form="okddip", one_way=True)


def test_networks_of_a_pair_may_differ() -> None:
    method = DML()
    context = context_of(method, "cnn")
    peer = network(Model("resnet8"), True)
    distiller = method.build(replace(context, networks={**context.networks, "peer1": peer}))
    assert sorted(distiller.eval()(BATCH)) == ["peer1", "student"]
    assert list(distiller.parts()) == ["student", "peer1"]


# --- kdcl -----------------------------------------------------------------------------------------------------------------


def with_views(count: int) -> Batch:
    images = torch.randn(len(BATCH.labels), count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    return replace(BATCH, images=images)


def test_each_network_sees_its_own_view() -> None:
    method = KDCL(students=3)
    assert method.needs().views == 3
    assert KDCL(students=3, views="same").needs().views == 1
    distiller, batch = built(method, "cnn")[0].eval(), with_views(3)
    with torch.no_grad():
        said = distiller.answers(batch.images)
        for number, role in enumerate(distiller.roles):
            expected = distiller.get_submodule(role)(batch.images[:, number]).logits
            torch.testing.assert_close(said[role].logits, expected)
    assert all(loss.isfinite() for loss in told(distiller, batch).values())
    assert distiller(BATCH)["peer2"].shape == (len(BATCH.labels), CLASSES)


@pytest.mark.parametrize("variant", ["naive", "linear", "min_logit", "general", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft targets"])
def test_nobody_is_taught_by_way_of_the_target(variant: Any, soft: bool) -> None:
    distiller, _ = built(KDCL(variant=variant), "cnn")
    losses = told(distiller, drawn_batch(soft=soft))
    assert list(losses) == ["ce", "peer1<-ce", "student<-ensemble", "peer1<-ensemble"]
    assert all(loss.isfinite() for loss in losses.values())
    assert not learns(losses["student<-ensemble"], distiller.get_submodule("peer1"))


def test_the_linear_weights_are_those_of_all_ranks() -> None:
    """A rank that holds half of the batch has the target of the whole."""
    method = KDCL(variant="linear")
    logits, labels = torch.randn(2, 8, CLASSES), torch.arange(8) % CLASSES
    truth, valid = kdcl.one_hot(labels, logits), torch.tensor([True] * 7 + [False])
    row = torch.cat([*logits, truth, valid[:, None].float()], 1)
    halves = replace(ALONE, size=2, gather=lambda mine: row)
    half: Any = method.build(replace(context_of(method, "cnn"), world=halves))
    whole: Any = method.build(context_of(method, "cnn"))
    mine = half.target(logits[:, ::2], truth[::2], valid[::2])
    torch.testing.assert_close(mine, whole.target(logits, truth, valid)[::2])
    assert method.needs().couples == "micro-batch"
    assert KDCL().needs().couples is None


def epochs(distiller: Any, numbers: list[float]) -> list[Tensor]:
    """The weights in use at steps in these epochs, each on a batch of its own."""
    used = []
    for step, epoch in enumerate(numbers):
        distiller.before_step(Progress(0, step, 6 * step, epoch, 3.0))
        distiller(drawn_batch(seed=step), {})
        used.append(distiller.errors.weights.clone())
        distiller.after_step(Progress(0, step, 6 * step, epoch, 3.0))
    return used


def test_the_general_weights_are_those_of_the_epoch_before() -> None:
    distiller: Any = built(KDCL(variant="general", students=3), "cnn")[0]
    distiller.eval()  # nothing moves: the same networks all the time
    first, second, third, fourth = epochs(distiller, [0.0, 0.5, 1.0, 1.5])
    assert first.tolist() == second.tolist() == pytest.approx([1 / 3] * 3)
    assert torch.equal(third, fourth)
    products = []
    for seed in (0, 1):
        batch = drawn_batch(seed=seed)
        logits = torch.stack(list(distiller(batch).values()))
        products.append(kdcl.error_products(logits, kdcl.one_hot(batch.labels, logits), batch.valid))
    torch.testing.assert_close(third, kdcl.general_weights(torch.stack(products).sum(0) / 12))
    assert float(third.sum()) == pytest.approx(1)


def test_an_epoch_that_is_resumed_in_its_middle_has_the_same_weights() -> None:
    whole, begun, resumed = (built(KDCL(variant="general"), "cnn")[0].eval() for _ in range(3))
    expected = epochs(whole, [0.0, 0.5, 1.0])[-1]
    epochs(begun, [0.0])
    resumed.load_state_dict(begun.state_dict())
    for step, epoch in ((1, 0.5), (2, 1.0)):
        resumed.before_step(Progress(0, step, 6 * step, epoch, 3.0))
        resumed(drawn_batch(seed=step), {})
        resumed.after_step(Progress(0, step, 6 * step, epoch, 3.0))
    assert torch.equal(resumed.errors.weights, expected)


def test_a_step_that_is_not_finished_leaves_nothing() -> None:
    distiller: Any = built(KDCL(variant="general"), "cnn")[0].eval()
    distiller.before_step(Progress(0, 0, 0, 0.0, 3.0))
    distiller(drawn_batch(), {})
    distiller.before_step(Progress(0, 1, 6, 0.1, 3.0))
    distiller.after_step(Progress(0, 1, 6, 0.1, 3.0))
    assert not distiller.errors.rows


# --- one ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cnn", "token"])
def test_the_student_is_the_first_branch(kind: str) -> None:
    distiller, _ = built(ONE(), kind)
    assert list(distiller.parts()) == ["student", "branch2", "branch3", "gate"]
    distiller.eval()
    with torch.no_grad():
        said = distiller(BATCH)
        assert set(said) == {"student", "branch2", "branch3", "ensemble"}
        torch.testing.assert_close(said["student"], distiller.student(BATCH.images).logits)
    inside = torch.stack([said[name] for name in ("student", "branch2", "branch3")])
    assert (said["ensemble"] <= inside.amax(0) + 1e-5).all()
    assert (said["ensemble"] >= inside.amin(0) - 1e-5).all()


def test_the_gate_learns_from_the_labels_of_the_ensemble_alone() -> None:
    distiller, _ = built(ONE(), "cnn")
    losses = told(distiller)
    gate = distiller.get_submodule("gate")
    assert [name for name, loss in losses.items() if learns(loss, gate)] == ["ensemble<-ce"]
    assert not learns(losses["student<-ensemble"], distiller.get_submodule("branch2"))


def test_the_gate_of_resnet32_has_the_published_size() -> None:
    network = build("resnet32")
    gate = Gate(network.shape("stage2"), 3)
    assert sum(p.numel() for p in gate.parameters()) == 105
    scores = gate(torch.randn(4, 32, 16, 16))
    assert scores.shape == (4, 3)
    assert (scores >= 0).all()
    assert Gate((17, 24), 2)(torch.randn(4, 17, 24)).shape == (4, 2)


def test_the_ramp_counts_whole_epochs() -> None:
    assert gaussian_ramp(0.9, 80) == pytest.approx(0.006738, rel=1e-3)
    assert gaussian_ramp(40.99, 80) == gaussian_ramp(40.0, 80) == pytest.approx(0.286505, rel=1e-5)
    assert gaussian_ramp(80.0, 80) == gaussian_ramp(299.0, 80) == gaussian_ramp(0.0, 0) == 1.0
    distiller, _ = built(ONE(rampup=80), "cnn")
    distiller.eval()
    at = {}
    for epoch in (0.0, 80.0):
        distiller.before_step(Progress(0, 1, 0, epoch, 300.0))
        at[epoch] = distiller(BATCH, {})
    torch.testing.assert_close(at[0.0]["ce"], at[80.0]["ce"])
    torch.testing.assert_close(at[0.0]["student<-ensemble"], gaussian_ramp(0.0, 80) * at[80.0]["student<-ensemble"])


# --- okddip ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["branch", "network"])
def test_everything_learns_through_the_targets(form: Any) -> None:
    distiller, _ = built(OKDDip(form=form), "cnn")
    assert list(distiller.parts()) == ["student", "peer1", "peer2", "peer3", "query", "key"]
    losses = told(distiller)
    assert learns(losses["student<-peers"], distiller.get_submodule("peer2"))
    assert not learns(losses["student<-peers"], distiller.get_submodule("query"))
    for part in ("query", "key", "peer3"):
        assert learns(losses["peer1<-peers"], distiller.get_submodule(part)), part
    assert set(distiller.eval()(BATCH)) == {"student", "peer1", "peer2", "peer3"}


def test_the_leaders_target_may_be_detached() -> None:
    distiller, _ = built(OKDDip(form="network", detach_leader_target=True), "cnn")
    losses = told(distiller)
    assert not learns(losses["student<-peers"], distiller.get_submodule("peer2"))
    assert learns(losses["peer1<-peers"], distiller.get_submodule("peer2"))


def test_the_attention_has_the_published_size() -> None:
    distiller, _ = built(OKDDip(), "cnn")  # pooled features of 64 channels
    assert [distiller.get_submodule(name).weight.numel() for name in ("query", "key")] == [512, 512]


def test_peers_of_several_widths_cannot_share_an_attention() -> None:
    method = OKDDip(form="network")
    context = context_of(method, "cnn")
    networks = {**context.networks, "peer2": network(Model("wrn_16_2"), True)}
    with pytest.raises(NetworkError, match=r"widths differ \(peer1 64, peer2 128, peer3 64\)"):
        method.build(replace(context, networks=networks))
    leader = {**context.networks, "student": network(Model("wrn_16_2"), True)}
    assert method.build(replace(context, networks=leader))


@pytest.mark.parametrize("method", [ONE(), OKDDip()])
def test_a_student_that_cannot_branch_is_named(method: Method) -> None:
    context = context_of(method, "cnn")
    with pytest.raises(NetworkError, match="'mobilenetv2_050' has no last stage"):
        method.build(replace(context, networks={"student": build("mobilenetv2_050", size=SIZE)}))
