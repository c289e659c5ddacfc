"""What a recipe is shown to be, from networks that are imagined."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from kdscale.engine.describe import describe
from kdscale.engine.imagined import Unimaginable, imagined
from kdscale.methods import KD, Method
from kdscale.methods.kd import KDDistiller
from kdscale.recipe import Data, Model, Needs, Paper, Phase, Recipe
from kdscale.recipe.frozen import value
from kdscale.recipe.load import load
from kdscale.types import Context, DatasetInfo

INFO = DatasetInfo("", 100, 10, None, (0.5,) * 3, (0.25,) * 3, 32)


@pytest.fixture
def asking() -> Any:
    """A method whose build reads a weight."""

    @value
    class Asking(Method):
        kind: Literal["asking"] = "asking"
        paper = Paper("A", "B", 2026, "C")

        def needs(self) -> Needs:
            return Needs(frozen=("teacher",))

        def build(self, context: Context) -> KDDistiller:
            assert float(next(context.networks["teacher"].parameters()).abs().sum()) > 0
            return KDDistiller(KD(), context)

    yield Asking()
    del Method.registry["asking"]


def test_a_memory_of_imagenet_is_not_drawn() -> None:
    """CRD keeps 128 numbers of each of 1.28 million images for student and for teacher: 1.3 GB."""
    before = torch.get_rng_state()
    lines = list(describe(load("imagenet/resnet:r34_r18-crd"), ranks=1))
    assert "  trained student (resnet18): 11,689,512 parameters" in lines
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_that_asks_for_numbers_is_shown_with_real_networks(asking: Any) -> None:
    networks = {"student": Model("resnet8"), "teacher": Model("resnet8")}
    lines = list(describe(Recipe(networks, Data("cifar100"), (Phase(asking, epochs=1),)), ranks=1))
    assert "  trained student (resnet8): 83,892 parameters" in lines


def test_what_cannot_be_imagined_is_one_line_that_names_its_place() -> None:
    with (
        pytest.raises(Unimaginable, match=r"test_describe.py:\d+ asks a tensor for its numbers .*: kdscale check") as told,
        imagined(INFO),
    ):
        torch.zeros(3).add(1).sum().item()
    assert "\n" not in str(told.value)
