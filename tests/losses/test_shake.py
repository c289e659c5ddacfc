from __future__ import annotations

import pytest
import torch

from kdscale.losses import shake


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).double()


def test_each_mutual_term_teaches_one_side_alone() -> None:
    student, shadow = drawn(0).requires_grad_(), drawn(1).requires_grad_()
    for name, learner, target in (("student<-shadow", student, shadow), ("shadow<-student", shadow, student)):
        gradients = torch.autograd.grad(shake.mutual(student, shadow, 4.0)[name].sum(), (learner, target), allow_unused=True)
        assert gradients[0].abs().sum() > 0
        assert gradients[1] is None


def test_the_ce_signal_pulls_as_the_kl_signal_does() -> None:
    shadow, teacher = drawn(0).requires_grad_(), drawn(1)
    kl, ce = (torch.autograd.grad(shake.proxy(shadow, teacher, s, 4.0).sum(), shadow)[0] for s in ("kl", "ce"))
    torch.testing.assert_close(kl, ce)


@pytest.mark.parametrize("scale", [3.0, 3.1415])
def test_normalised_rows_have_mean_zero_and_the_deviation_that_is_asked(scale: float) -> None:
    rows = shake.normalised(drawn(0) * 40 + 3, scale)
    torch.testing.assert_close(rows.mean(-1), torch.zeros(5).double())
    torch.testing.assert_close(rows.std(-1, correction=0), torch.full((5,), scale).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("signal", ["kl", "l2"])
def test_a_shadow_that_says_what_the_teacher_says_pays_nothing(signal: shake.ProxySignal) -> None:
    torch.testing.assert_close(shake.proxy(drawn(0), drawn(0), signal, 4.0), torch.zeros(5).double())
