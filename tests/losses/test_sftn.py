from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from kdscale.losses.sftn import agreement

BRANCH, TEACHER = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def divergence(of: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    p, q = functional.softmax(of / temperature, -1), functional.softmax(other / temperature, -1)
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("squared", [True, False])
def test_the_two_directions(squared: bool) -> None:
    factor = 9.0 if squared else 1.0
    forward = agreement(BRANCH, TEACHER, 3.0, "code", squared)
    torch.testing.assert_close(forward, factor * divergence(TEACHER, BRANCH, 3.0))
    backward = agreement(BRANCH, TEACHER, 3.0, "paper", squared)
    torch.testing.assert_close(backward, factor * divergence(BRANCH, TEACHER, 3.0))


def test_both_sides_learn() -> None:
    sides = [side.clone().requires_grad_() for side in (BRANCH, TEACHER)]
    for gradient in torch.autograd.grad(agreement(*sides, 1.0).sum(), sides):
        assert gradient.abs().max() > 0


def test_equal_answers_agree() -> None:
    torch.testing.assert_close(agreement(BRANCH, BRANCH, 2.0, "paper"), torch.zeros(5, dtype=torch.float64))
