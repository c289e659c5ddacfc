"""Every registered method with its defaults, and settings that build other parts.

A method that expands to several phases is tested part by part: ``CASES`` holds the method of each of its phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import kdscale.methods
from kdscale.methods import Method, Shake
from kdscale.recipe import Data, Model, Phase, Recipe, resolve
from kdscale.recipe import Method as AbstractMethod

from .small import MODELS, supported

assert kdscale.methods
REGISTRY: dict[str, type[Method]] = {k: c for k, c in AbstractMethod.registry.items() if c.__module__.startswith("kdscale.")}  # type: ignore[misc]
VARIANTS: dict[str, Method] = {
    "shake-fused": Shake(head="fused"),
    "shake-code": Shake(form="code"),
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


def kinds(method: Method, name: str) -> list[str]:
    """The kinds of student that every phase of a method takes."""
    parts = cases_of(name, method).values()
    return [kind for kind in MODELS if sum(part.kind == kind for part in parts) == 1 + max(part.number for part in parts)]


CASES: dict[str, Case] = {key: case for name, method in METHODS.items() for key, case in cases_of(name, method).items()}
WHOLE: dict[str, tuple[Method, str]] = {
    f"{name}-{kind}": (method, kind) for name, method in METHODS.items() for kind in kinds(method, name)
}
