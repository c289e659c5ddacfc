"""Stages trained one by one: which parameters, on whose features, against which of the teacher's; then the classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kdscale.errors import NetworkError
from kdscale.methods import Distiller, HeadOnly, StageByStage
from kdscale.networks import Network
from kdscale.recipe import Cosine, Data, FromPhase, Model, MultiStep, Phase, Plateau, Recipe, resolve
from kdscale.tasks import Classification
from kdscale.types import Context, Outputs

from .small import ALONE, CLASSES, INFO, MODELS, drawn_batch, network, taught, total

BATCH = drawn_batch()
VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 8}


def context_of(method: Any, student: Model, teacher: Model, phase: Phase | None = None) -> Context:
    networks: dict[str, Any] = {"student": network(student, True)}
    if method.needs().frozen:
        networks["teacher"] = network(teacher, False, 90)

    def fresh(role: str, copy: int) -> Network:
        return network(student, True, 1000 + copy)

    phase = phase or Phase(method, steps=6)
    return Context(networks, fresh, INFO, ALONE, Classification(), phase, 7, "fp32", torch.device("cpu"))


def built(method: Any, student: str | Model = "wrn_16_1", teacher: str | Model = "wrn_16_2") -> tuple[Distiller, Context]:
    pair = [Model(m) if isinstance(m, str) else m for m in (student, teacher)]
    context = context_of(method, *pair)
    torch.manual_seed(0)
    return method.build(context).train(), context


def losses_of(distiller: Distiller, method: Any, context: Context) -> dict[str, torch.Tensor]:
    losses: dict[str, torch.Tensor] = distiller(BATCH, taught(method, context, BATCH))
    return losses


def trained(distiller: Distiller) -> set[str]:
    return {name for name, p in distiller.student.named_parameters() if p.requires_grad}


def deit(**changes: Any) -> Model:
    return Model("deit_tiny_distilled_patch16_224", weights="random", size=32, args=VIT | changes)


# The phases


def expanded(method: StageByStage, **changes: Any) -> tuple[Phase, ...]:
    networks = {"student": Model("wrn_16_1"), "teacher": Model("wrn_16_2")}
    phase = Phase(method, **{"epochs": 60, "name": "gao", "schedule": MultiStep((18, 36, 54))} | changes)
    return resolve(Recipe(networks=networks, data=Data("drawn"), phases=(phase,))).phases


def test_a_phase_for_each_stage_and_one_for_the_classifier() -> None:
    phases = expanded(StageByStage(stages=3))
    assert [phase.name for phase in phases] == ["gao-stage1", "gao-stage2", "gao-stage3", "gao-head"]
    assert [phase.method.stage for phase in phases] == [1, 2, 3, 0]  # type: ignore[attr-defined]
    assert [phase.part for phase in phases] == [0, 1, 2, 3]
    assert all(phase.epochs == 60 and phase.schedule == MultiStep((18, 36, 54)) for phase in phases)
    assert [phase.networks["student"] for phase in phases[1:]] == [FromPhase(phase.name) for phase in phases[:-1]]
    assert all(phase.networks["teacher"] == Model("wrn_16_2") for phase in phases[:-1])
    assert set(phases[-1].networks) == {"student"}, "the classifier has no teacher"


def test_all_stages_at_once_take_as_long_as_one_by_one() -> None:
    first, head = expanded(StageByStage(stages=3, variant="multi_loss"))
    assert (first.name, first.epochs, first.schedule) == ("gao-stages", 180, MultiStep((54, 108, 162)))
    assert (head.name, head.epochs, head.schedule) == ("gao-head", 60, MultiStep((18, 36, 54)))
    steps, _ = expanded(StageByStage(stages=3, variant="multi_loss"), epochs=None, steps=10, schedule=Cosine())
    assert steps.steps == 30
    (joint,) = expanded(StageByStage(variant="joint"))
    assert (joint.name, joint.epochs) == ("gao", 60)


def test_each_stage_waits_for_its_own_plateau() -> None:
    schedule = Plateau("train.loss", "min", threshold=1e-3, relative=True, end=1e-5, stops=True)
    assert {phase.schedule for phase in expanded(StageByStage(), schedule=schedule)} == {schedule}


# What is trained


@pytest.mark.parametrize(
    ("student", "method"),
    [
        ("wrn_16_1", StageByStage()),
        ("resnet20", StageByStage(stages=8)),
        ("resnet8", StageByStage(stem_stage=True)),
        ("vgg8", StageByStage()),
        ("okd_densenet40_12", StageByStage(stages=2)),
        ("resnet18", StageByStage(stages=3)),
    ],
)
def test_every_parameter_is_trained_in_exactly_one_phase(student: str, method: StageByStage) -> None:
    seen: list[str] = []
    for number in (*range(1, 1 + method.stages), 0):
        distiller, _ = built(replace(method, stage=number), student, student)
        assert trained(distiller)
        seen += sorted(trained(distiller))
    assert len(seen) == len(set(seen))
    assert set(seen) == {name for name, _ in network(Model(student), True).named_parameters()}


def test_a_stage_learns_alone() -> None:
    method = StageByStage(stages=3, stage=2)
    distiller, context = built(method, "resnet20", "resnet32")
    total(losses_of(distiller, method, context)).backward()
    reached = {name for name, p in distiller.student.named_parameters() if p.grad is not None}
    assert {".".join(name.split(".")[:2]) for name in reached} == {"body.layer2"}
    assert list(distiller.parts()) == ["student"], "equal widths have no adapter"


def test_what_is_fixed_is_at_rest_and_what_comes_later_is_not_run() -> None:
    method = StageByStage(stages=3, stage=2)
    distiller, context = built(method, "resnet20", "resnet32")
    losses_of(distiller, method, context)
    body = distiller.student.body
    counts = {n.split(".")[0]: int(b) for n, b in body.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {"bn1": 0, "layer1": 0, "layer2": 1, "layer3": 0}
    assert not body.layer1.training  # type: ignore[union-attr]
    assert body.layer2.training  # type: ignore[union-attr]


def test_fixed_parts_may_follow_the_batch() -> None:
    method = StageByStage(stages=3, stage=2, frozen_bn="train")
    distiller, context = built(method, "resnet20", "resnet32")
    losses_of(distiller, method, context)
    buffers = distiller.student.body.named_buffers()
    counts = {n.split(".")[0]: int(b) for n, b in buffers if n.endswith("num_batches_tracked")}
    assert counts == {"bn1": 1, "layer1": 1, "layer2": 1, "layer3": 0}
    assert {name.split(".")[1] for name in trained(distiller)} == {"layer2"}


# What is compared


def test_the_objective_of_a_stage() -> None:
    """Stage 2 of 4 ends within a group of blocks, where there is no tap: spelt out with the networks' own blocks."""
    method = StageByStage(stage=2)
    distiller, context = built(method)
    said = taught(method, context, BATCH)
    assert list(said["teacher"].taps) == ["block1.layer.1"]
    assert said["teacher"].logits is None
    student, adapter = distiller.student, distiller.bridges[0].adapter  # type: ignore[index, union-attr]
    assert isinstance(adapter, nn.Conv2d)
    assert (adapter.weight.shape, adapter.bias is not None) == ((32, 16, 1, 1), True)
    loss = distiller(BATCH, said)["stage2"]
    student.eval()
    with torch.no_grad():
        earlier = student.run(BATCH.images, upto="block1.layer.0")
    distiller.train()
    mine = adapter(student.run(earlier, after="block1.layer.0", upto="block1.layer.1"))
    theirs = context.networks["teacher"].run(BATCH.images, upto="block1.layer.1")
    assert torch.allclose(loss, ((mine - theirs) ** 2).mean(), rtol=1e-5)


def test_a_smaller_map_of_the_student_is_brought_to_the_teachers_size() -> None:
    """vgg8 halves its first map where resnet20 keeps it: 16 pixels to 32."""
    method = StageByStage(stages=3, stage=1)
    distiller, context = built(method, "vgg8", "resnet20")
    assert taught(method, context, BATCH)["teacher"].taps["layer1.2"].shape[-1] == 32
    bilinear = losses_of(distiller, method, context)["stage1"]
    pooled, context = built(replace(method, resize="avgpool"), "vgg8", "resnet20")
    assert bilinear.isfinite()
    assert not torch.equal(bilinear, losses_of(pooled, method, context)["stage1"])


def test_a_teacher_of_more_groups_is_cut_as_the_student() -> None:
    method = StageByStage(stage=2)
    _, context = built(method, "resnet20", "ResNet18")
    assert method.places(context.networks) == [("layer1.2", "layer2.1")]


def test_before_the_last_relu() -> None:
    method = StageByStage(stages=3, stage=2, tap="pre")
    distiller, context = built(method, "resnet20", "resnet32")
    said = taught(method, context, BATCH)
    whole = context.networks["teacher"](BATCH.images, ("stage2.pre",))
    assert torch.equal(said["teacher"].taps["stage2.pre"], whole.taps["stage2.pre"])
    after, context = built(replace(method, tap="post"), "resnet20", "resnet32")
    differs = losses_of(after, replace(method, tap="post"), context)["stage2"]
    assert not torch.equal(distiller(BATCH, said)["stage2"], differs)


@pytest.mark.parametrize(
    ("method", "student", "said"),
    [
        (StageByStage(stage=1, tap="pre"), "resnet20", "no map before the ReLU of its block layer1.1: take tap='post'"),
        (StageByStage(stages=3, stage=1, tap="pre"), "wrn_16_1", r"knows its 'stage1.pre' only when it runs on"),
        (StageByStage(stage=1), "resnet8", "'resnet8' cannot be cut into 4 stages"),
        (StageByStage(stages=3, stage=1), "mobilenetv2_050", "cannot be run in spans of blocks"),
        (StageByStage(stages=3, stage=1), "deit", "has tokens at blocks.1 and 'resnet32' a map at layer1.4"),
        (StageByStage(stages=3, stage=1, stem_stage=True), "deit", "no tap 'stem'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(method: StageByStage, student: str, said: str) -> None:
    with pytest.raises(NetworkError, match=said) as caught:
        built(method, deit() if student == "deit" else student, "resnet32")
    assert "\n" not in str(caught.value)


# Vision transformers


def test_tokens_are_compared_one_by_one() -> None:
    """A distilled student has a token that its teacher has not: it is left out; the patches of both are 4 x 4."""
    teacher = Model("vit_tiny_patch16_224", weights="random", size=32, args={**VIT, "embed_dim": 48, "num_heads": 3})
    method = StageByStage(stage=2)
    distiller, context = built(method, deit(), teacher)
    said = taught(method, context, BATCH)
    (theirs,) = said["teacher"].taps.values()
    assert theirs.shape == (6, 17, 48)
    bridge = distiller.bridges[0]  # type: ignore[index]
    assert isinstance(bridge.adapter, nn.Linear)  # type: ignore[union-attr]
    mine = bridge.adapter(distiller.student.run(BATCH.images, upto="blocks.1"))  # type: ignore[operator, union-attr]
    matched = mine[:, [0, *range(2, 18)]]
    assert torch.allclose(distiller(BATCH, said)["stage2"], ((matched - theirs) ** 2).mean(), rtol=1e-5)


def test_other_numbers_of_patches_are_resized_as_a_map() -> None:
    method = StageByStage(stages=1, stage=1)
    distiller, context = built(method, deit(), deit(patch_size=16))
    losses = losses_of(distiller, method, context)
    assert losses["stage1"].isfinite()
    mine, theirs = distiller.bridges[0](torch.randn(1, 18, 32), torch.randn(1, 6, 32))  # type: ignore[index, operator]
    assert mine.shape == theirs.shape == (1, 32, 6)


def test_a_constant_token_matrix_stays_constant() -> None:
    distiller, _ = built(StageByStage(stages=1, stage=1), deit(), deit(patch_size=16))
    mine, _ = distiller.bridges[0](torch.ones(1, 18, 32), torch.zeros(1, 6, 32))  # type: ignore[index, operator]
    assert torch.allclose(mine, torch.ones(()))


# The variants


def test_one_stage_is_all_stages_at_once() -> None:
    alone, at_once = StageByStage(stages=1, stage=1), StageByStage(stages=1, variant="multi_loss")
    (first, context), (second, _) = built(alone), built(at_once)
    assert trained(first) == trained(second)
    assert torch.equal(losses_of(first, alone, context)["stage1"], losses_of(second, at_once, context)["stage1"])


def test_all_at_once_a_stage_learns_from_those_behind_it() -> None:
    method = StageByStage(variant="multi_loss")
    distiller, context = built(method)
    losses = losses_of(distiller, method, context)
    assert list(losses) == ["stage1", "stage2", "stage3", "stage4"]
    stem = dict(distiller.student.named_parameters())["body.conv1.weight"]
    for loss in losses.values():
        assert torch.autograd.grad(loss, stem, retain_graph=True)[0].abs().sum() > 0
    assert not any("fc" in name for name in trained(distiller))
    assert distiller(BATCH) == {}


def test_joint_is_the_usual_sum() -> None:
    method = StageByStage(variant="joint", weight=3.0, tap="pre", stages=3)
    distiller, context = built(method, "resnet20", "resnet32")
    losses = losses_of(distiller, method, context)
    assert list(losses) == ["ce", "stage1", "stage2", "stage3"]
    student = distiller.student(BATCH.images, ("stage1.pre",))
    teacher = context.networks["teacher"](BATCH.images, ("stage1.pre",)).taps["stage1.pre"]
    assert torch.allclose(losses["stage1"], 3 * ((student.taps["stage1.pre"] - teacher) ** 2).mean(), rtol=1e-5)
    assert torch.allclose(losses["ce"], nn.functional.cross_entropy(student.logits, BATCH.labels), rtol=1e-5)
    assert trained(distiller) == {name for name, _ in distiller.student.named_parameters()}
    assert distiller(BATCH)["student"].shape == (6, CLASSES)


# The classifier


@pytest.mark.parametrize("method", [HeadOnly(), StageByStage(stage=0)], ids=["head_only", "the last phase"])
def test_the_classifier_alone_is_drawn_anew_and_trained(method: Any) -> None:
    plain = network(MODELS["cnn"], True)
    distiller, context = built(method)
    assert trained(distiller) == {"body.fc.weight", "body.fc.bias"}
    state, before = distiller.student.body.state_dict(), plain.body.state_dict()
    changed = {name for name in before if not torch.equal(state[name], before[name])}
    assert changed == {"fc.weight"}, "this family's biases begin at 0, and the rest is what was trained"
    total(losses_of(distiller, method, context)).backward()
    assert all(torch.equal(b, dict(plain.body.named_buffers())[n]) for n, b in distiller.student.body.named_buffers())
    assert {n for n, p in distiller.named_parameters() if p.grad is not None} == {
        "student.body.fc.weight",
        "student.body.fc.bias",
    }


def test_both_heads_of_a_distilled_student_are_new() -> None:
    distiller, _ = built(HeadOnly(), MODELS["token"])
    assert trained(distiller) == {f"body.{head}.{name}" for head in ("head", "head_dist") for name in ("weight", "bias")}


def test_features_may_follow_the_batch() -> None:
    distiller, _ = built(HeadOnly(frozen_bn="train"))
    distiller(BATCH, {"teacher": Outputs(None)})
    assert all(int(b) == 1 for n, b in distiller.student.named_buffers() if n.endswith("num_batches_tracked"))
