from __future__ import annotations

import pytest
import torch

from kdscale.losses.alpha_divergence import adaptive, divergence, surrogate, value
from kdscale.losses.logits import kd_kl

ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.0]


def drawn(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)).double() * 2


@pytest.mark.parametrize("alpha", ALPHAS)
def test_it_is_zero_for_equal_distributions_and_positive_for_others(alpha: float) -> None:
    same, other = divergence(drawn(), drawn() + 3, alpha), divergence(drawn(), drawn(1), alpha)
    torch.testing.assert_close(same, torch.zeros(6).double(), atol=1e-12, rtol=0)
    assert (other > 0).all()


@pytest.mark.parametrize(("alpha", "limit"), [(1.0, False), (0.0, True)])
def test_its_limits_are_the_two_kl_divergences(alpha: float, limit: bool) -> None:
    student, teacher = drawn(), drawn(1)
    expected = kd_kl(teacher, student, 1.0) if limit else kd_kl(student, teacher, 1.0)
    torch.testing.assert_close(divergence(student, teacher, alpha), expected)
    torch.testing.assert_close(divergence(student, teacher, alpha + 2e-3), expected, rtol=2e-2, atol=0)


def test_a_half_is_the_hellinger_distance() -> None:
    p, q = drawn(1).softmax(-1), drawn().softmax(-1)
    torch.testing.assert_close(divergence(drawn(), drawn(1), 0.5), 2 * (p.sqrt() - q.sqrt()).square().sum(-1))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_without_a_clip_the_surrogate_pulls_as_the_divergence(alpha: float) -> None:
    student, teacher = drawn().requires_grad_(), drawn(1)
    exact, stand_in = divergence(student, teacher, alpha), surrogate(student, teacher, alpha)
    torch.testing.assert_close(value(student, teacher, alpha), exact.detach())
    mine, theirs = (torch.autograd.grad(rows.sum(), student)[0] for rows in (stand_in, exact))
    torch.testing.assert_close(mine, theirs)


def test_each_row_takes_the_larger_divergence() -> None:
    student, teacher = drawn(), drawn(1)
    rows = adaptive(student, teacher, clip=5.0)
    low, high = (value(student, teacher, a, 5.0) for a in (-1.0, 1.0))
    chosen = [surrogate(student, teacher, -1.0 if a > b else 1.0, 5.0) for a, b in zip(low, high, strict=True)]
    assert 0 < int((low > high).sum()) < len(rows)
    torch.testing.assert_close(rows, torch.stack([c[i] for i, c in enumerate(chosen)]))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_temperature_keeps_the_size_of_the_gradient(alpha: float) -> None:
    """Near its teacher a student feels every alpha alike: half the squared distance of the softened logits."""
    teacher = drawn(1) * 0.01
    student = (teacher + 0.001 * drawn()).requires_grad_()
    once, softened = (torch.autograd.grad(divergence(student, teacher, alpha, t).sum(), student)[0] for t in (1.0, 4.0))
    torch.testing.assert_close(once, softened, rtol=0.2, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_teacher_without_doubt_costs_a_finite_number(alpha: float) -> None:
    student, sure = torch.zeros(1, 3, requires_grad=True), torch.tensor([[80.0, 0.0, -40.0]])
    for rows in (surrogate(student, sure, alpha, 5.0), adaptive(student, sure)):
        (gradient,) = torch.autograd.grad(rows.sum(), student)
        assert rows.isfinite().all()
        assert gradient.isfinite().all()
    assert value(student, sure, alpha, 5.0).isfinite().all()


def test_half_logits_are_widened() -> None:
    half = drawn().half()
    assert divergence(half, half, 0.5).dtype == torch.float32
    assert torch.equal(adaptive(half, drawn(1).half()), adaptive(half.float(), drawn(1).half().float()))
