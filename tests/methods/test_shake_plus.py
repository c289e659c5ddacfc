"""SHAKE with the terms of other methods: one forward of the student for all, each term's own parts, clocks and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdscale.errors import RecipeError
from kdscale.methods import KD, Crd, FitNets, Shake
from kdscale.methods.terms import Term, TermMethod
from kdscale.recipe import Data, Method, Model, Phase, Recipe, from_json, override, to_json
from kdscale.recipe.frozen import value
from kdscale.types import Batch, Context, Losses, Outputs, Progress, Taught

from .small import CLOCK, built, drawn_batch, taught

BATCH = drawn_batch()


@value
class Stem(TermMethod):
    """Counts its calls, and reads what nobody else reads."""

    taps: ClassVar[Mapping[str, tuple[str, ...]]] = {"student": ("stem", "stage1"), "teacher": ("stem",)}

    def term(self, context: Context) -> Term:
        return StemTerm(context)


class StemTerm(Term):
    def __init__(self, context: Context) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[str] = []

    def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
        self.calls.append("forward")
        assert set(outputs.taps) >= {"stem", "stage1"}
        return {"stem": self.scale * (outputs.taps["stem"].mean() - taught["teacher"].taps["stem"].mean()).square()}

    def before_step(self, progress: Progress) -> None:
        self.calls.append("before")

    def after_step(self, progress: Progress) -> None:
        self.calls.append("after")


@pytest.fixture
def stem() -> Any:
    class Registered(Stem):
        kind: Literal["stem_for_a_test"] = "stem_for_a_test"

    yield value(Registered)
    Method.registry.pop("stem_for_a_test", None)


@pytest.mark.parametrize("settings", [{}, {"head": "fused"}, {"form": "code"}, {"own_bn": True}, {"proxy": "network"}])
def test_a_term_is_called_around_a_step_wherever_the_shadow_is(stem: Any, settings: dict[str, Any]) -> None:
    method = Shake(plus=(stem(),), **settings)
    distiller, context = built(method, "cnn")
    said = taught(method, context, BATCH)
    forwards: list[Any] = []
    distiller.student.register_forward_hook(lambda *_: forwards.append(None))
    distiller.before_step(CLOCK)
    losses = distiller(BATCH, said)
    distiller.after_step(CLOCK)
    assert list(losses)[-1] == "stem"
    assert len(forwards) == 1
    term: Any = distiller.get_submodule("stem_for_a_test")
    assert term.calls == ["before", "forward", "after"]
    assert "stem_for_a_test" in distiller.parts()
    plain, _ = built(Shake(**settings), "cnn")
    assert set(losses) - {"stem"} == set(plain(BATCH, said))


def test_needs_are_those_of_all() -> None:
    needs = Shake(plus=(FitNets(), Crd()), form="code").needs()
    assert needs.labels
    assert needs.couples == "micro-batch"
    assert needs.taps["student"] == ("stage2", "pooled")
    assert needs.taps["teacher"] == ("stages", "stage2", "pooled")
    assert Shake().needs().taps == {}


def test_a_hint_is_added_as_it_stands() -> None:
    method = Shake(plus=(FitNets(),))
    distiller, context = built(method, "cnn")
    said = taught(method, context, BATCH)
    losses = distiller(BATCH, said)
    assert list(losses) == ["ce", "student<-shadow", "shadow<-student", "shadow<-teacher", "fitnets"]
    term: Any = distiller.get_submodule("fitnets")
    outputs = distiller.student(BATCH.images, taps=("stage2",))
    torch.testing.assert_close(losses["fitnets"], term(outputs, BATCH, said)["fitnets"])
    assert all(p.requires_grad for p in term.parameters())


def test_a_token_student_takes_terms_too(stem: Any) -> None:
    class Last(Stem):
        taps: ClassVar[Mapping[str, tuple[str, ...]]] = {"student": ("stage1",), "teacher": ()}
        kind: Literal["stem_for_a_test"] = "stem_for_a_test"

        def term(self, context: Context) -> Term:
            return Mean()

    class Mean(Term):
        def forward(self, outputs: Outputs, batch: Batch, taught: Taught) -> Losses:
            return {"mean": outputs.taps["stage1"].square().mean()}

    method = Shake(plus=(value(Last)(),))
    distiller, context = built(method, "token")
    losses: dict[str, Tensor] = distiller(BATCH, taught(method, context, BATCH))
    assert list(losses)[-1] == "mean"


def test_json_and_words_reach_what_is_added() -> None:
    method = Shake(plus=(FitNets(weight=50.0), Crd(kd=1.0)))
    networks = {role: Model("wrn_16_1") for role in ("student", "teacher")}
    recipe = Recipe(networks=networks, data=Data("drawn"), phases=(Phase(method, epochs=60),))
    assert from_json(to_json(recipe)) == recipe
    changed = override(recipe, ['method.plus=[{"kind": "fitnets", "weight": 7}]'])
    assert changed.phases[0].method == Shake(plus=(FitNets(weight=7.0),))
    with pytest.raises(RecipeError, match="there is no method 'fitnet'"):
        from_json(to_json(recipe).replace('"fitnets"', '"fitnet"'))


@pytest.mark.parametrize(
    ("plus", "said"),
    [((KD(),), "'kd' is none"), ((Shake(),), "'shake' is none"), ((FitNets(), FitNets(tap="stage1")), "'fitnets' twice")],
)
def test_what_has_no_term_is_refused(plus: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Shake(plus=plus)
