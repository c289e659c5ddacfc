"""The published losses to the last digits: values and gradients of stored cases, by the losses and by whole distillers.

``KDSCALE_GOLDEN`` names another folder of the same form (``baselines/`` and ``methods/``, with their ``index.json``).
Each case is checked in float64 and, at wider tolerances, in float32.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.losses import deit, shake
from kdscale.losses.logits import cross_entropy, kd_kl, soft_cross_entropy
from kdscale.methods import KD, Deit, Distiller, Method, Shake
from kdscale.networks.heads import FusedHead
from kdscale.tasks import Classification
from kdscale.types import Batch, Context, DatasetInfo, Outputs, World

from .golden import DTYPES, Case, baselines_case, methods_case, near
from .shared import ROOT

# --- baselines: one file of many cases ------------------------------------------------------------------------------------


def logit_cases() -> list[Any]:
    """Known without reading anything where the folder is absent, so that its tests skip and do not vanish."""
    folder = os.environ.get("KDSCALE_GOLDEN") or ROOT / "golden"
    index = Path(folder, "baselines", "index.json")
    if not index.exists():
        return [pytest.param("kd/T4", {})]
    cases = json.loads(index.read_text())["cases"]
    kept = [c for c in cases if c["file"] == "logits.safetensors" and c["name"].split("/")[0] in ("kd", "ls", "ce")]
    return [pytest.param(c["name"], c["hyperparameters"], id=c["name"]) for c in kept]


def logit_loss(name: str, given: dict[str, Tensor], hyper: dict[str, Any]) -> Tensor:
    student = given["student"]
    if name.startswith("ls/"):
        return cross_entropy(student, given["labels"], hyper["eps"]).mean()
    if name.startswith("ce/"):
        return soft_cross_entropy(student, given["targets"]).mean()
    if "labels" not in given:
        return kd_kl(student, given["teacher"], hyper["T"]).mean()
    method = KD(temperature=hyper["T"], ce=hyper["gamma"], kd=hyper["alpha"])
    losses = distil(method, Said(Outputs(student)), Outputs(given["teacher"]), given["labels"])
    return sum(losses.values(), torch.zeros(()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "hyper"), logit_cases())
def test_logits(name: str, hyper: dict[str, Any], dtype: torch.dtype) -> None:
    case = baselines_case("logits.safetensors", name, dtype)
    loss = logit_loss(name, case.given, hyper)
    case.value("out/loss", loss)
    case.gradients(loss, "grad/", ["student"])


# --- methods: a file a case -----------------------------------------------------------------------------------------------


def numbers(words: str) -> dict[str, float]:
    """'alpha .5 tau 3' -> {'alpha': 0.5, 'tau': 3.0}"""
    return {name: float(number) for name, number in re.findall(r"(\w+) ([\d.]+)", words)}


class Said(nn.Module):
    """A network that has already answered."""

    name, has_distillation_head = "said", False

    def __init__(self, outputs: Outputs, head: nn.Module | None = None) -> None:
        super().__init__()
        self.outputs, self.head = outputs, head
        assert outputs.logits is not None
        self.classes = self.width = outputs.logits.shape[-1]

    def forward(self, images: Tensor, taps: tuple[str, ...] = ()) -> Outputs:
        return self.outputs

    def set_clock(self, share: Tensor) -> None:
        return None

    def set_noise(self, key: Tensor, position: Tensor) -> None:
        return None

    def shape(self, tap: str) -> tuple[int, ...]:
        return tuple(self.outputs.taps[tap].shape[1:])


class Token(Said):
    has_distillation_head = True

    def __init__(self, student: Tensor, distillation: Tensor) -> None:
        super().__init__(Outputs((student + distillation) / 2, heads={"class": student, "distillation": distillation}))


def built(method: Method, student: nn.Module, teacher: nn.Module, classes: int) -> Distiller:
    info = DatasetInfo("golden", 1, classes, None, (0.5,) * 3, (0.2,) * 3, 8)
    world = World(0, 1, lambda t: t, lambda t: t)
    return method.build(Context({"student": student, "teacher": teacher}, None, info, world, Classification(), None, 0))


def batch_of(labels: Tensor, targets: Tensor | None = None) -> Batch:
    numbers = torch.arange(len(labels))
    images = torch.zeros(len(labels), 3, 8, 8)
    return Batch(images, ((0.5,) * 3, (0.2,) * 3), labels, targets, numbers, numbers, numbers * 0, labels >= 0)


def distil(
    method: Method, student: Said, teacher: Outputs, labels: Tensor, targets: Tensor | None = None,
    change: Callable[[Any], None] = lambda distiller: None,
) -> dict[str, Tensor]:  # fmt: skip
    """The losses of the method's own distiller on networks that have already answered."""
    distiller = built(method, student, Said(teacher), student.classes)
    change(distiller)
    return distiller(batch_of(labels, targets), {"teacher": teacher})


PROXIES = {
    "kl": {"proxy_signal": "kl"},
    "ce": {"proxy_signal": "ce"},
    "l2": {"proxy_signal": "l2"},
    "kl_labels": {"proxy_signal": "kl", "proxy_labels": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", PROXIES)
def test_shake_paper(entry: str, dtype: torch.dtype) -> None:
    case = methods_case("shake_paper", dtype)
    student, shadow, teacher = (case.given[f"{n}_logits"] for n in ("student", "shadow", "teacher"))
    temperature = case.hyper["T"]
    method = Shake(temperature=temperature, weight=case.hyper["lambda_"], ce_temperature=temperature, **PROXIES[entry])

    def says_the_stored(distiller: Any) -> None:
        distiller.shadow = nn.Identity()

    said = Said(Outputs(student, taps={"pooled": shadow}))
    losses = distil(method, said, Outputs(teacher.detach()), case.given["labels"], change=says_the_stored)
    case.value("ce", losses["ce"])
    case.value("kl_shadow_to_student", losses["student<-shadow"])
    case.value("kl_student_to_shadow", losses["shadow<-student"])
    case.value(f"proxy_{entry}", losses["shadow<-teacher"] + losses.get("shadow<-ce", 0))
    loss = sum(losses.values(), torch.zeros(()))
    case.value(f"loss_{entry}", loss)
    case.gradients(loss, f"grad_{entry}.", ["student_logits", "shadow_logits"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_shake_with_several_teachers(dtype: torch.dtype) -> None:
    """Every head follows its own teacher and speaks with the student alone: a mean, or a sum, of one-teacher terms."""
    case = methods_case("shake_multi", dtype)
    given, temperature, count = case.given, case.hyper["T"], case.hyper["teachers"]
    student = given["student_logits"]
    shadows = [given[f"shadow{k + 1}_logits"] for k in range(count)]
    teachers = [given[f"teacher{k + 1}_logits"].detach() for k in range(count)]

    def exchange(shadow: Tensor) -> Tensor:
        return case.hyper["lambda_"] * sum(shake.mutual(student, shadow, temperature).values(), torch.zeros(())).mean()

    def follow(shadow: Tensor, teacher: Tensor) -> Tensor:
        return shake.proxy(shadow, teacher, "kl", temperature).mean()

    ce = cross_entropy(student, given["labels"]).mean()
    terms = torch.stack([exchange(h) + follow(h, t) for h, t in zip(shadows, teachers, strict=True)])
    case.value("loss_mean", ce + terms.mean())
    case.value("loss_sum", ce + terms.sum())
    one = ce + exchange(shadows[0])
    case.value("loss_single_aver", one + torch.stack([follow(shadows[0], t) for t in teachers]).mean())
    case.value("loss_single_logit_mean", one + follow(shadows[0], torch.stack(teachers).mean(0)))
    for name in ("student", "shadow1", "shadow2", "shadow3"):
        (gradient,) = torch.autograd.grad(ce + terms.mean(), given[f"{name}_logits"], retain_graph=True)
        near(gradient, case.stored[f"grad.{name}_mean"], case.tolerance.gradient, case.tolerance.floor)


def code_shake(case: Case, scale: float, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    given = case.given
    classifier = nn.Linear(given["fc_weight"].shape[1], given["fc_weight"].shape[0], dtype=dtype)
    classifier.load_state_dict({"weight": given["fc_weight"].detach(), "bias": given["fc_bias"].detach()})
    taps = {f"stage{i}": given[f"teacher_feat{i}"].detach() for i in (1, 2, 3)}
    said = Outputs(given["teacher_logits"].detach(), taps=taps)
    method = Shake(form="code", temperature=case.hyper["T"], logit_scale=scale)
    student = Said(Outputs(given["student_logits"]))
    distiller: Any = built(method, student, Said(said, classifier), student.classes)
    head = distiller.shadow
    assert isinstance(head, FusedHead)
    head.to(dtype)
    stored = {name.removeprefix("head."): t.detach() for name, t in given.items() if name.startswith("head.")}
    missing, unexpected = head.load_state_dict(stored, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    distiller.train()
    return distiller, distiller(batch_of(given["labels"]), {"teacher": said})


@pytest.mark.parametrize("dtype", DTYPES)
def test_shake_code(dtype: torch.dtype) -> None:
    case = methods_case("shake_code", dtype)
    distiller, losses = code_shake(case, case.hyper["scale"], dtype)
    loss = sum(losses.values(), torch.zeros(()))
    case.value("loss", loss)
    for name, term in {
        "ce_student": "ce", "ce_shadow": "shadow<-ce", "kl_student_to_shadow": "shadow<-student",
        "kl_shadow_to_student": "student<-shadow", "mse_shadow_teacher": "shadow<-teacher",
    }.items():  # fmt: skip
        case.value(name, losses[term])
    case.gradients(loss, "grad.", ["student_logits"])
    for name, parameter in distiller.shadow.named_parameters():
        (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        near(gradient, case.stored[f"grad.head.{name}"], case.tolerance.gradient, case.tolerance.floor)
    case.value("loss_scale_3", sum(code_shake(case, case.hyper["scale_alt"], dtype)[1].values(), torch.zeros(())))


def deit_case(dtype: torch.dtype) -> tuple[Case, Token, Outputs, Tensor, Tensor]:
    case = methods_case("deit", dtype)
    given = case.given
    token = Token(given["class_logits"], given["dist_logits"])
    targets = given["soft_targets"].detach()
    return case, token, Outputs(given["teacher_logits"].detach()), targets.argmax(-1), targets


def token_shake(hyper: dict[str, float], hard: bool) -> Shake:
    return Shake(temperature=hyper["T"], weight=hyper["lambda"], alpha=hyper["alpha"], hard=hard)


DEIT = {
    "hard": lambda hyper: Deit(hard=True, alpha=numbers(hyper["hard"])["alpha"]),
    "soft_numel": lambda hyper: Deit(hard=False, reduction="numel", **numbers(hyper["soft_numel"])),
    "soft_numel_paper": lambda hyper: Deit(hard=False, reduction="numel", **numbers(hyper["soft_numel_paper"])),
    "soft_batch": lambda hyper: Deit(hard=False, **numbers(hyper["soft_numel"])),
    "soft_batch_paper": lambda hyper: Deit(hard=False, **numbers(hyper["soft_numel_paper"])),
    "shake_hard": lambda hyper: token_shake(numbers(hyper["shake"]), hard=True),
    "shake_soft": lambda hyper: token_shake(numbers(hyper["shake"]), hard=False),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entry", DEIT)
def test_deit(entry: str, dtype: torch.dtype) -> None:
    case, token, teacher, labels, targets = deit_case(dtype)
    method = DEIT[entry](case.hyper)
    losses = distil(method, token, teacher, labels, targets)
    loss = sum(losses.values(), torch.zeros(()))
    case.value(f"loss_{entry}", loss)
    case.value("base", losses["ce"] / (1 - (method.share if isinstance(method, Deit) else method.alpha)))
    for name in ("class_logits", "dist_logits"):
        if f"grad_{entry}.{name}" in case.stored:
            case.gradients(loss, f"grad_{entry}.", [name])


def test_the_pure_losses_of_deit_need_no_network() -> None:
    case, _, teacher, _, targets = deit_case(torch.float64)
    assert teacher.logits is not None
    base = soft_cross_entropy(case.given["class_logits"], targets).mean()
    case.value("base", base)
    hard = deit.hard(case.given["dist_logits"], teacher.logits).mean()
    case.value("loss_hard", 0.5 * base + 0.5 * hard)
