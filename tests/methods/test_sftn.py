"""Student-friendly teachers: sizes of transforms and branches as published, what trains what, and the phases around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.engine.checkpoint.folder import Folder
from kdscale.engine.parallel import Session, connect
from kdscale.engine.stage import build_stage
from kdscale.engine.trained import open_run, trained
from kdscale.errors import NetworkError
from kdscale.methods import KD, Sftn
from kdscale.methods.sftn import Pairing, paired
from kdscale.recipe import SGD, Checkpointing, Evaluation, FromPhase, Model, MultiStep, Phase, Recipe, resolve
from kdscale.tasks import Classification
from kdscale.types import Context, World

from ..engine import mishaps, small
from ..networks.making import build, info, tiny_deit
from .small import BATCH, CLASSES, built, drawn_batch, total

# The networks


def distiller_of(teacher: str, student: str, method: Sftn | None = None) -> Any:
    """For CIFAR-100, on the meta device: shapes without numbers."""
    with torch.device("meta"):
        networks = {"teacher": build(teacher, classes=100)}
        context = Context(
            networks,
            lambda role, copy: build(student, classes=100, seed=copy),
            info(100),
            World(0, 1, lambda t: t, lambda t: t),
            Classification(),
            Phase(method or Sftn(), steps=1),
            0,
        )
        return context.phase.method.build(context)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


RESNET8X4 = (230_144 + 919_040 + 25_700, 919_040 + 25_700)
WRN_16_2 = (131_520 + 525_184 + 256 + 12_900, 525_184 + 256 + 12_900)
SHUFFLE_V2 = (1_325_216, 1_081_036)
VGG8 = (295_680 + 1_181_184 + 2_360_832 + 51_300, 1_181_184 + 2_360_832 + 51_300, 2_360_832 + 51_300)
SIZES = {
    ("wrn_40_2", "wrn_16_2"): ((1_024, 4_096), (1_120, 4_288), WRN_16_2),
    ("wrn_40_2", "wrn_40_1"): ((512, 2_048), (560, 2_144), (541_316, 434_084)),
    ("resnet32x4", "resnet8x4"): ((4_096, 16_384), (4_288, 16_768), RESNET8X4),
    ("resnet32x4", "ShuffleV1"): ((138_240, 552_960), (138_960, 554_400), (910_240, 612_940)),
    ("resnet32x4", "ShuffleV2"): ((66_816, 267_264), (67_164, 267_960), SHUFFLE_V2),
    ("wrn_40_2", "ShuffleV2"): ((33_408, 133_632), (33_756, 134_328), SHUFFLE_V2),
    ("ResNet50", "vgg8"): ((294_912, 1_179_648, 4_718_592), (295_296, 1_180_416, 4_720_128), VGG8),
}
"""(weights of the convolutions, the whole transforms, the student's blocks behind them), a number a branch."""


@pytest.mark.parametrize("pair", SIZES, ids="-".join)
def test_the_published_pairs(pair: tuple[str, str]) -> None:
    distiller = distiller_of(*pair)
    convolutions, transforms, blocks = SIZES[pair]
    assert tuple(branch.transform[0].weight.numel() for branch in distiller.branches) == convolutions
    assert tuple(size(branch.transform) for branch in distiller.branches) == transforms
    assert tuple(size(branch.blocks) for branch in distiller.branches) == blocks


def test_a_bare_transform_is_its_convolution() -> None:
    distiller = distiller_of("resnet32x4", "resnet8x4", Sftn(transform_norm=False))
    assert [size(branch.transform) for branch in distiller.branches] == [4_096 + 64, 16_384 + 128]


@pytest.mark.parametrize(
    ("teacher", "student", "pairing", "pairs"),
    [
        ("resnet8x4", "ShuffleV1", "index", [("stage1", 1), ("stage2", 2)]),
        ("resnet8x4", "ShuffleV1", "resolution", [("stage2", 1)]),
        ("ResNet18", "resnet8", "index", [("stage1", 1), ("stage2", 2)]),
        ("MobileNetV2", "resnet8", "resolution", [("stage1", 2)]),
    ],
)
def test_stages_are_paired_by_index_or_by_size(
    teacher: str, student: str, pairing: Pairing, pairs: list[tuple[str, int]]
) -> None:
    assert paired(build(teacher), build(student), pairing) == pairs


def test_branches_share_nothing() -> None:
    distiller, _ = built(Sftn(), "cnn")
    first, second = (dict(branch.blocks.named_parameters()) for branch in distiller.branches)  # type: ignore[union-attr,operator]
    assert second.keys() < first.keys()
    convolutions = [name for name in second if second[name].ndim == 4]
    assert convolutions
    assert not any(torch.equal(first[name], second[name]) for name in convolutions)


def test_networks_that_do_not_fit_say_so() -> None:
    def build_one(teacher: Any, student: Any) -> None:
        networks, world = {"teacher": teacher}, World(0, 1, lambda t: t, lambda t: t)
        phase = Phase(Sftn(), steps=1)
        phase.method.build(Context(networks, lambda role, copy: student(), info(), world, Classification(), phase, 0))  # type: ignore[attr-defined]

    with pytest.raises(NetworkError, match="take tokens: take a CIFAR network or a timm ResNet"):
        build_one(build("resnet8"), tiny_deit)
    with pytest.raises(NetworkError, match="no stage of teacher 'resnet8'"):
        build_one(build("resnet8"), lambda: build("mobilenetv2_050"))
    with pytest.raises(NetworkError, match="by halving or doubling"):
        build_one(build("resnet8", size=24), lambda: build("resnet8"))


# What trains what


def losses_of(method: Sftn) -> tuple[Any, dict[str, Tensor]]:
    distiller, _ = built(method, "cnn")
    losses: dict[str, Tensor] = distiller(drawn_batch(), {})
    return distiller, losses


def reaches(loss: Tensor, parameter: Tensor) -> bool:
    (gradient,) = torch.autograd.grad(loss, [parameter], allow_unused=True, retain_graph=True)
    return gradient is not None


NAMES = ["ce", "branch1<-teacher", "branch1<-ce", "branch2<-teacher", "branch2<-ce"]


def test_nothing_is_detached() -> None:
    """A branch trains the teacher's features below it, and pulls the teacher's answer."""
    distiller, losses = losses_of(Sftn())
    assert list(losses) == NAMES
    body = distiller.student.body
    stem, second, last = body.conv1.weight, body.block2.layer[0].conv1.weight, body.fc.weight
    assert all(reaches(loss, stem) for loss in losses.values())
    assert [name for name in NAMES if reaches(losses[name], second)] == [n for n in NAMES if n != "branch1<-ce"]
    assert [name for name in NAMES if reaches(losses[name], last)] == ["ce", "branch1<-teacher", "branch2<-teacher"]


def test_features_and_target_can_be_detached() -> None:
    distiller, losses = losses_of(Sftn(detach_features=True))
    stem = distiller.student.body.conv1.weight
    assert [name for name in NAMES if reaches(losses[name], stem)] == ["ce", "branch1<-teacher", "branch2<-teacher"]
    distiller, losses = losses_of(Sftn(detach_target=True))
    assert [name for name in NAMES if reaches(losses[name], distiller.student.body.fc.weight)] == ["ce"]


def test_weights_are_shared_by_the_branches() -> None:
    _, plain = losses_of(Sftn())
    _, weighted = losses_of(Sftn(lambda_t=2.0, lambda_kl=1.0, lambda_ce=4.0))
    factors = [2.0, 1 / 3, 4.0, 1 / 3, 4.0]
    for name, factor in zip(NAMES, factors, strict=True):
        torch.testing.assert_close(weighted[name], factor * plain[name])


def test_the_teacher_is_the_answer_and_branches_are_shown() -> None:
    distiller, context = built(Sftn(), "cnn")
    distiller.eval()
    batch = drawn_batch()
    said = distiller(batch)
    assert list(said) == ["student", "branch1", "branch2"]
    assert distiller.student is context.networks["teacher"]
    assert torch.equal(said["student"], context.networks["teacher"](batch.images).logits)
    assert said["branch2"].shape == (BATCH, CLASSES)


def test_branches_alone_hold_the_teacher_still() -> None:
    distiller, losses = losses_of(Sftn(branches_only=True))
    assert list(losses) == NAMES
    assert list(distiller.parts()) == ["branches"]
    before = {name: tensor.clone() for name, tensor in distiller.student.state_dict().items()}
    total(losses).backward()
    assert all(p.grad is not None for p in distiller.branches.parameters())
    assert all(p.grad is None for p in distiller.student.parameters())
    assert not any(module.training for module in distiller.student.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in distiller.student.state_dict().items())


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def session() -> Session:
    return connect()


def recipe_of(data: Path, *first: Phase) -> Recipe:
    """The phases ``first``, of which the last is called 'friendly', then distillation from its teacher."""
    student = Phase(KD(), steps=4, name="student", networks={"teacher": FromPhase("friendly", "teacher", floor=0)})
    return mishaps.short(
        data,
        networks={"student": Model("wrn_16_1"), "teacher": Model("resnet8")},
        phases=(*first, student),
        checkpointing=Checkpointing(every_steps=2),
        evaluation=Evaluation(every=1000),
    )


FRIENDLY = Phase(Sftn(), steps=5, name="friendly", optimizer=SGD(0.05))
TUNED = (
    Phase(Sftn(branches_only=True), steps=3, name="branches", optimizer=SGD(0.05), schedule=MultiStep((0.2,))),
    Phase(
        Sftn(),
        steps=3,
        name="friendly",
        networks={"teacher": FromPhase("branches", "teacher")},
        carry=("branches",),
        optimizer=SGD(0.005),
        schedule=MultiStep((0.8,), offset=0.6),
    ),
)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as a user starts it."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = small.write(folder / "r.json", recipe_of(data, FRIENDLY))
    small.kdscale("train", recipe, "--out", folder / "out")
    return folder / "out"


def test_a_teacher_is_made_and_teaches_in_one_run(whole: Path) -> None:
    lines = small.lines(whole, "evaluation")
    assert [line["name"] for line in lines] == ["student", "branch1", "branch2", "teacher", "student"]
    assert lines[3]["top1"] == lines[0]["top1"]
    assert lines[3]["loss"] == lines[0]["loss"]
    left = [{name.partition(".")[0] for name in small.weights(whole, phase)} for phase in ("01-friendly", "02-student")]
    assert left == [{"student", "branches"}, {"student"}]


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(4, id="in the teacher's phase", marks=pytest.mark.slow),
        pytest.param(7, id="between"),
        pytest.param(9, id="in the student's phase", marks=pytest.mark.slow),
    ],
)
def test_killed_it_continues_to_the_same_bits(save: int, whole: Path, data: Path, session: Session, tmp_path: Path) -> None:
    recipe, out = recipe_of(data, FRIENDLY), tmp_path / "out"
    mishaps.killed_at_save(recipe, out, session, save)
    mishaps.train(recipe, out, session)
    same_run(out, whole, "01-friendly", "02-student")


def same_run(out: Path, whole: Path, *phases: str) -> None:
    assert small.losses(out) == small.losses(whole)
    for phase in phases:
        mishaps.equal(small.weights(out, phase), small.weights(whole, phase))


def test_what_a_run_gives_by_name(whole: Path) -> None:
    assert trained(open_run(whole)).network.name == "wrn_16_1"
    teacher = trained(open_run(whole), "friendly.teacher").network
    assert teacher.name == "resnet8"
    left = small.weights(whole, "01-friendly")
    assert all(torch.equal(left[f"student.body.{name}"], tensor) for name, tensor in teacher.body.state_dict().items())


@pytest.mark.slow
def test_what_is_exported_is_the_last_student(whole: Path) -> None:
    small.kdscale("export", whole)
    assert json.loads((whole / "export" / "config.json").read_text())["architecture"] == "wrn_16_1"


@pytest.mark.slow
def test_a_trained_teacher_is_tuned_in_two_halves(data: Path, session: Session, tmp_path: Path) -> None:
    """First the branches alone, then everything, from the branches that are there; one curve of rates runs over both."""
    recipe, out, whole = recipe_of(data, *TUNED), tmp_path / "out", tmp_path / "whole"
    mishaps.train(recipe, whole, session)
    branches, friendly = small.weights(whole, "01-branches"), small.weights(whole, "02-friendly")
    start = build_stage(resolve(recipe), 1, session, Folder(whole)).distiller.state_dict()
    mishaps.equal({name: start[name] for name in branches}, branches)
    untouched = build_stage(resolve(recipe), 0, session, Folder(whole)).distiller.student.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(branches[f"student.{name}"], tensor) for name, tensor in untouched.items())
    assert any(not torch.equal(friendly[name], tensor) for name, tensor in branches.items() if name.startswith("student."))
    assert [line["lr"] for line in small.lines(whole)][:6] == pytest.approx([0.05, 0.005, 0.005, 0.005, 0.0005, 0.0005])
    mishaps.killed_at_save(recipe, out, session, 5)
    mishaps.train(recipe, out, session)
    same_run(out, whole, "01-branches", "02-friendly", "03-student")
