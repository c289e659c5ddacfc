"""What the roll of methods says is what the methods build: phases, and trained parameters beside the student."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import pytest
from torch import nn

from kdscale.errors import NetworkError
from kdscale.methods import DML, KD, TAKD, Crd, Deit, HeadOnly, Method, Sftn, Shake, StageByStage, Supervised
from kdscale.recipe import Method as AbstractMethod
from kdscale.recipe import Needs, Paper
from kdscale.recipe.frozen import value
from kdscale.report.methods import Count, Workshop, beside_student, described, recipe_of, roll

WRN_40_2, WRN_16_2 = 2_255_156, 703_284  # parameters, 100 classes
LINEAR = 128 * 100 + 100  # a head on WRN-16-2


@value
class Planted(Method):
    """Never built."""

    kind: Literal["zz"] = "zz"
    paper: ClassVar[Paper] = Paper("A title", "One, Two, Three, Four", 1999, "VENUE", formula="L", published=("a: 1", "b: 2"))

    def needs(self) -> Needs:
        return Needs(trained=("teacher",), drawn=("student",), views=2)

    def build(self, context: Any) -> Any:
        raise NetworkError("it takes\nno network")


AbstractMethod.registry.pop("zz")  # other tests go through the registry


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return Workshop()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A roll that a test may write on."""
    methods: dict[str, Any] = {"kd": KD, "takd": TAKD}
    monkeypatch.setattr(AbstractMethod, "registry", methods)
    return methods


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (Supervised(), Count(1, 0)),
        (KD(), Count(1, 0)),
        (HeadOnly(), Count(1, 0)),
        (Deit(), Count(1, 0)),
        (Shake(), Count(1, LINEAR)),
        (Crd(), Count(1, 2 * (128 * 128 + 128))),
        (DML(), Count(1, WRN_40_2)),
        (DML(students=3), Count(1, WRN_40_2 + WRN_16_2)),
        (TAKD(), Count(2, WRN_16_2)),
        (StageByStage(), Count(5, 0)),
    ],
    ids=lambda case: getattr(case, "kind", ""),
)
def test_phases_and_parameters(method: Method, count: Count, workshop: Workshop) -> None:
    assert workshop.count(method) == count


def test_a_method_that_trains_no_student_trains_all_that_it_has_beside_one(workshop: Workshop) -> None:
    assert workshop.count(Sftn()).beside > WRN_40_2


def test_what_a_student_shares_is_its_own() -> None:
    student = nn.Linear(3, 2)
    distiller = nn.ModuleDict({"student": student, "head": nn.Linear(2, 5, bias=False), "frozen": nn.Linear(2, 5)})
    distiller["frozen"].requires_grad_(False)
    assert beside_student(distiller, student) == 10
    assert beside_student(distiller, None) == 18


def test_roles_are_played_by_the_pair() -> None:
    assert {role: model.name for role, model in recipe_of(DML(students=3), "vgg13", "vgg8").networks.items()} == {  # type: ignore[union-attr]
        "student": "vgg8",
        "peer1": "vgg13",
        "peer2": "vgg8",
    }
    assert recipe_of(Deit()).networks["student"].name.startswith("deit_tiny_distilled")  # type: ignore[union-attr]


def test_the_roll_is_aligned_and_says_what_it_counts(registry: dict[str, Any]) -> None:
    head, kd, takd, foot = roll()
    assert head.split() == ["method", "year", "phases", "trained", "paper"]
    assert re.split("  +", kd) == [
        "kd",
        "2014",
        "1",
        "0",
        "Hinton, Vinyals, Dean, NeurIPS Deep Learning Workshop",
        KD.paper.title,
    ]
    assert re.split("  +", takd)[:5] == ["takd", "2020", "2", f"{WRN_16_2:,}", "Mirzadeh et al., AAAI"]
    assert head.index("trained") + len("trained") == kd.index("  Hinton") == takd.index("  Mirzadeh")
    assert "wrn_40_2 -> wrn_16_2, 100 classes" in foot


def test_a_method_that_cannot_be_built_is_told_with_its_reason(registry: dict[str, Any]) -> None:
    registry["zz"] = Planted
    line = list(roll())[-2]
    assert re.split("  +", line) == ["zz", "1999", "-", "-", "One et al., VENUE", "A title; not counted: it takes no network"]


def test_one_method_with_what_was_published() -> None:
    told = list(described(Planted))
    assert told[:5] == [
        "zz: A title",
        "  paper      One, Two, Three, Four, VENUE 1999",
        "  formula    L",
        "  published  a: 1",
        "             b: 2",
    ]
    assert "  trained    teacher; frozen: none; drawn: student (the architecture alone)" in told
    assert "  views      2 of each image, each with its own augmentation" in told
    assert not any("phases" in line for line in told)


def test_the_phases_of_a_method() -> None:
    told = list(described(TAKD))
    first = next(n for n, line in enumerate(told) if line.startswith("  phases"))
    assert told[first : first + 2] == [
        "  phases     takd-assistant: trained assistant; frozen: teacher",
        "             takd-student: trained student; frozen: assistant",
    ]
    assert "  reduction = 'batch'  of 'batch', 'elementwise'" in told
    assert "  views      1" in told
