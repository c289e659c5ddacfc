"""Every registered method with its defaults, and settings that build other parts.

A method that expands to several phases is tested part by part: ``CASES`` holds the method of each of its phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import kdscale.methods
from kdscale.methods import (
    BAN,
    DML,
    ESKD,
    KDCL,
    RCO,
    AlphaDivergence,
    Crd,
    FitNets,
    Method,
    MultiKD,
    OKDDip,
    ReverseKD,
    Sftn,
    Shake,
    StageByStage,
)
from kdscale.recipe import Data, Model, Phase, Recipe, resolve
from kdscale.recipe import Method as AbstractMethod

from .small import MODELS, supported

assert kdscale.methods
REGISTRY: dict[str, type[Method]] = {k: c for k, c in AbstractMethod.registry.items() if c.__module__.startswith("kdscale.")}  # type: ignore[misc]
VARIANTS: dict[str, Method] = {
    "dml-one-way": DML(students=3, one_way=True),
    "kdcl-linear": KDCL(variant="linear", students=3),
    "kdcl-general": KDCL(variant="general", views="same"),
    "alpha_divergence-exact": AlphaDivergence(alpha=0.5),
    "ban-ensemble": BAN(generations=2, labels=False, ensemble=True),
    "ban-cwtm": BAN(generations=1, variant="cwtm"),
    "ban-dkpp": BAN(generations=1, variant="dkpp", labels=False),
    "eskd-distillation": ESKD(stop="distillation", at=20),
    "multi_kd-aekd": MultiKD(weights="aekd"),
    "okddip-network": OKDDip(form="network"),
    "rco-cycles": RCO(anchors=2, cycles=True),
    "reverse_kd-head": ReverseKD(update="head"),
    "reverse_kd-first": ReverseKD(update="first", first_epochs=20),
    "sftn-bare": Sftn(transform_norm=False, kl_direction="paper"),
    "shake-fused": Shake(head="fused"),
    "shake-code": Shake(form="code"),
    "shake-aekd": Shake(teachers=3, heads="each", weights="aekd"),
    "shake-one-head": Shake(teachers=2, heads="one", divergence="alpha"),
    "shake-code-teachers": Shake(form="code", teachers=2),
    "shake-half-width": Shake(own_bn=True, width=0.5),
    "shake-network": Shake(proxy="network"),
    "shake-teacher-copy": Shake(proxy="teacher_copy"),
    "shake-plus": Shake(plus=(FitNets(), Crd(negatives=64))),
    "stage_by_stage-multi": StageByStage(stages=2, variant="multi_loss", frozen_bn="train"),
    "stage_by_stage-joint": StageByStage(stages=3, variant="joint", weight=0.5, stem_stage=True),
    "shake-labels": Shake(proxy_signal="ce", proxy_labels=True, warmup_epochs=3),
}
METHODS: dict[str, Method] = {kind: cls() for kind, cls in REGISTRY.items()} | VARIANTS


@dataclass(frozen=True)
class Case:
    """One phase of a method on one kind of student."""

    whole: Method  # as a recipe has it
    number: int  # of the phase among those that it expands to
    phase: Phase
    kind: str  # of the student

    @property
    def method(self) -> Method:
        return self.phase.method  # type: ignore[return-value]


def recipe_of(method: Method) -> Recipe:
    """The method on a network for each of its roles."""
    needs = method.needs()
    roles = {role: Model("wrn_16_1") for role in (*needs.trained, *needs.frozen, *needs.drawn)}
    return Recipe(networks=roles, data=Data("drawn"), phases=(Phase(method, epochs=60),))


def cases_of(name: str, method: Method) -> dict[str, Case]:
    phases = resolve(recipe_of(method)).phases
    parts = [(f"{name}.{phase.name}" if len(phases) > 1 else name, n, phase) for n, phase in enumerate(phases)]
    cases = {f"{part}-{kind}": Case(method, n, phase, kind) for part, n, phase in parts for kind in supported(phase)}
    assert cases, f"{name} can be built on no kind of network"
    return cases


CASES: dict[str, Case] = {key: case for name, method in METHODS.items() for key, case in cases_of(name, method).items()}


def whole() -> dict[str, tuple[Method, str]]:
    """The methods on the kinds of student that every phase of theirs takes."""
    found: dict[str, tuple[Method, str]] = {}
    for name, method in METHODS.items():
        parts = [case for case in CASES.values() if case.whole is method]
        for kind in MODELS:
            if sum(part.kind == kind for part in parts) == 1 + max(part.number for part in parts):
                found[f"{name}-{kind}"] = method, kind
    return found


WHOLE: dict[str, tuple[Method, str]] = whole()


def is_quick(method: Method, kind: str) -> bool:
    """Whether the fast tests take it: every method with its defaults, and other settings on a CNN."""
    return kind == "cnn" or not any(method is variant for variant in VARIANTS.values())
