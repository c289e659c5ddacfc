from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdscale.losses.logits import cross_entropy, kd_kl, soft_cross_entropy, squared_error


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_uniform_logits_cost_the_logarithm_of_the_classes(classes: int) -> None:
    rows = cross_entropy(torch.zeros(3, classes), torch.arange(3))
    torch.testing.assert_close(rows, torch.full((3,), math.log(classes)))


def test_a_soft_target_that_is_a_label_is_that_label() -> None:
    logits, labels = drawn(6, 9), torch.arange(6)
    soft = soft_cross_entropy(logits, F.one_hot(labels, 9).float())
    torch.testing.assert_close(soft, cross_entropy(logits, labels))


def test_smoothing_is_a_mixture_with_the_uniform_target() -> None:
    logits, labels = drawn(6, 9), torch.arange(6)
    target = 0.9 * F.one_hot(labels, 9) + 0.1 / 9
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), soft_cross_entropy(logits, target))


def test_a_row_without_a_label_costs_nothing() -> None:
    assert cross_entropy(drawn(2, 5), torch.tensor([-100, 3]))[0] == 0


def test_the_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    z = drawn(4, 7).requires_grad_()
    loss = kd_kl(z, z.detach() + 5, 4.0).sum()  # a shift of all logits is the same distribution
    (gradient,) = torch.autograd.grad(loss, z)
    assert abs(float(loss.detach())) < 1e-5
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_gradient_of_kd_is_the_difference_of_the_softened_answers(temperature: float) -> None:
    student, teacher = drawn(5, 8).double().requires_grad_(), drawn(5, 8, seed=1).double()
    (gradient,) = torch.autograd.grad(kd_kl(student, teacher, temperature).mean(), student)
    difference = (student.detach() / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(gradient, temperature / 5 * difference)


def test_kd_survives_a_teacher_without_doubt() -> None:
    sure = torch.tensor([[500.0, 0.0, -500.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    loss = kd_kl(student, sure, 1.0).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(3)))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_widened_before_anything_is_rounded(dtype: torch.dtype) -> None:
    student, teacher, labels = drawn(4, 300).to(dtype), drawn(4, 300, seed=1).to(dtype), torch.arange(4)
    for half, full in (
        (cross_entropy(student, labels), cross_entropy(student.float(), labels)),
        (kd_kl(student, teacher, 4.0), kd_kl(student.float(), teacher.float(), 4.0)),
        (squared_error(student, teacher), squared_error(student.float(), teacher.float())),
        (soft_cross_entropy(student, teacher.softmax(-1)), soft_cross_entropy(student.float(), teacher.softmax(-1).float())),
    ):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


def test_a_method_may_want_the_gradient_through_the_target() -> None:
    teacher = drawn(2, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(kd_kl(drawn(2, 4, seed=1), teacher, 2.0).sum(), teacher)
    assert gradient.abs().sum() > 0
