from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kdscale.errors import RecipeError
from kdscale.losses.logits import kd_kl
from kdscale.methods import MultiKD
from kdscale.recipe import Data, Model, Phase, Recipe, resolve
from kdscale.types import Outputs, World

from .small import built, drawn_batch, taught

AEKD = MultiKD(weights="aekd")


def losses_of(method: MultiKD, world: World | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The method's losses, and each teacher's plain KD."""
    distiller, context = built(method, "cnn")
    distiller.eval()
    if world is not None:
        distiller.world = world
    batch = drawn_batch()
    said = taught(method, context, batch)
    student = distiller.student(batch.images).logits
    return distiller(batch, said), [kd_kl(student, o.logits, method.temperature).mean() for o in said.values()]  # type: ignore[arg-type]


def test_the_average_gives_each_teacher_its_share() -> None:
    losses, terms = losses_of(MultiKD(teachers=2, kd=3.0))
    assert list(losses) == ["ce", "kd<-teacher", "kd<-teacher2"]
    torch.testing.assert_close(losses["kd<-teacher2"], 3 / 2 * terms[1])


def test_the_common_gradient_is_shorter_than_the_average() -> None:
    method = MultiKD(weights="aekd", tolerance=1.0)
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch = drawn_batch()
    said = taught(method, context, batch)
    logits = distiller.student(batch.images).logits
    assert logits is not None
    student = logits.detach().requires_grad_()
    distiller.student.forward = lambda images, taps=(): Outputs(student)  # type: ignore[method-assign]
    losses = distiller(batch, said)
    plain = [kd_kl(student, o.logits, 4.0).mean() for o in said.values()]  # type: ignore[arg-type]

    def length(loss: Tensor) -> float:
        return float(torch.autograd.grad(loss, student, retain_graph=True)[0].mean(0).norm())

    agreed = sum(losses[f"kd<-{role}"] for role in said)
    assert length(agreed) < length(sum(plain) / 3)  # type: ignore[arg-type]
    assert sum(float((losses[f"kd<-{r}"] / t).detach()) for r, t in zip(said, plain, strict=True)) == pytest.approx(1)


def test_a_tolerance_of_one_share_is_the_average() -> None:
    for method in (MultiKD(teachers=2), MultiKD(teachers=2, weights="aekd", tolerance=0.5)):
        losses, terms = losses_of(method)
        torch.testing.assert_close(losses["kd<-teacher"], terms[0] / 2)


def test_all_ranks_move_by_one_combination() -> None:
    """Another rank's gradients decide with one's own: they come through the world's sum."""
    asked: list[Tensor] = []

    def total(gradients: Tensor) -> Tensor:
        if gradients.ndim < 2:
            return gradients * 2
        asked.append(gradients)
        return gradients + torch.stack([-3 * gradients[0], gradients[1], gradients[2]])

    alone, terms = losses_of(AEKD)
    shared, _ = losses_of(AEKD, World(0, 2, lambda t: t, total))
    assert asked[0].shape == (3, 10)
    first, second = (float((losses["kd<-teacher"] / terms[0]).detach()) for losses in (alone, shared))
    assert first != pytest.approx(second)


def test_weights_of_a_batch_couple_its_samples() -> None:
    assert (AEKD.needs().couples, MultiKD().needs().couples) == ("micro-batch", None)
    assert MultiKD(teachers=4).needs().frozen == ("teacher", "teacher2", "teacher3", "teacher4")


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValidationError, match=r"3 teachers of at most 0\.3 cannot add up to 1"):
        MultiKD(weights="aekd", tolerance=0.3)
    assert MultiKD(tolerance=0.3).weights == "aver"
    with pytest.raises(ValidationError):
        MultiKD(teachers=9)
    two = {"student": Model("wrn_16_1"), "teacher": Model("wrn_16_2"), "teacher2": Model("wrn_16_2")}
    recipe = Recipe(two, Data("drawn"), (Phase(MultiKD(), epochs=1),))
    with pytest.raises(RecipeError, match="role 'teacher3'"):
        resolve(recipe)
    assert resolve(replace(recipe, phases=(Phase(MultiKD(teachers=2), epochs=1),)))
