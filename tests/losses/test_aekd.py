from __future__ import annotations

import pytest
import torch

from kdscale.errors import RecipeError
from kdscale.losses.aekd import aekd_weights, mean_gradient
from kdscale.losses.logits import kd_kl


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def length(weights: torch.Tensor, gradients: torch.Tensor) -> float:
    return float((weights.to(gradients.dtype) @ gradients).square().sum())


def test_the_closed_form_is_the_gradient_of_kd() -> None:
    student, teacher = drawn(6, 8).requires_grad_(), drawn(6, 8, seed=1)
    rows = kd_kl(student, teacher, 4.0)
    (gradient,) = torch.autograd.grad(rows.sum(), student)
    torch.testing.assert_close(mean_gradient(student, teacher, 4.0), gradient.mean(0))


def test_a_row_that_does_not_count_is_a_zero() -> None:
    student, teacher, valid = drawn(6, 8), drawn(6, 8, seed=1), torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    expected = mean_gradient(student[valid], teacher[valid], 2.0) * 4 / 6
    torch.testing.assert_close(mean_gradient(student, teacher, 2.0, valid), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("tolerance", [0.6, 1.0])
def test_no_other_combination_within_the_bounds_is_shorter(count: int, tolerance: float) -> None:
    gradients = drawn(count, 12, seed=count) + 0.3
    weights = aekd_weights(gradients, max(tolerance, 1 / count))
    assert float(weights.sum()) == pytest.approx(1)
    assert weights.min() >= 0
    assert weights.max() <= max(tolerance, 1 / count)
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(4000, count, generator=generator).double().pow(3)
    others = others / others.sum(-1, keepdim=True)
    others = others[(others <= tolerance).all(-1)]
    assert all(length(weights, gradients) <= length(o, gradients) + 1e-12 for o in others)


def test_the_optimum_has_one_multiplier_for_all_free_weights() -> None:
    """The conditions of Karush, Kuhn and Tucker, on many draws, some with more teachers than directions."""
    for seed in range(60):
        gradients = drawn(2 + seed % 5, 3, seed=seed) + 0.5
        weights = aekd_weights(gradients, 0.6)
        slopes = gradients @ (weights @ gradients)
        free = (weights > 1e-7) & (weights < 0.6 - 1e-7)
        slack = 1e-8 * float(gradients.square().sum())
        level = slopes[free].mean() if free.any() else slopes[weights > 0.5].max()
        assert (slopes[free] - level).abs().max() <= slack if free.any() else True
        assert (slopes[weights <= 1e-7] >= level - slack).all()
        assert (slopes[weights >= 0.6 - 1e-7] <= level + slack).all()


def test_the_lowest_tolerance_gives_every_teacher_the_same() -> None:
    for count in (2, 3, 4, 7):
        torch.testing.assert_close(aekd_weights(drawn(count, 9), 1 / count), torch.full((count,), 1 / count).double())


def test_opposite_gradients_cancel() -> None:
    gradients = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(aekd_weights(gradients, 1.0), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("normalise", [False, True])
def test_one_scale_for_all_does_not_matter(scale: float, normalise: bool) -> None:
    gradients = drawn(3, 8)
    expected = aekd_weights(gradients, 0.6, normalise)
    torch.testing.assert_close(aekd_weights(gradients * scale, 0.6, normalise), expected)


def test_normalised_weights_favour_the_short() -> None:
    gradients = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(aekd_weights(gradients, 0.9, normalise=True), torch.tensor([0.2, 0.8]))


def test_teachers_that_say_the_same_share() -> None:
    gradients = drawn(1, 8).repeat(3, 1)
    for shared in (gradients, gradients * 0):
        torch.testing.assert_close(aekd_weights(shared, 0.6), torch.full((3,), 1 / 3).double(), atol=1e-6, rtol=0)


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(RecipeError, match=r"3 teachers of at most 0\.3 cannot add up to 1"):
        aekd_weights(drawn(3, 4), 0.3)
    with pytest.raises(RecipeError, match="at most 8 teachers"):
        aekd_weights(drawn(9, 4), 0.6)
