from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdscale.losses.dkd import decoupled, decoupled_mixed
from kdscale.losses.logits import kd_kl

LABELS = torch.tensor([0, 3, 8, 2, 2, 5])


def drawn(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(seed)).double() * 2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_weighs_the_rest_by_the_doubt_of_the_teacher(temperature: float) -> None:
    student, teacher = drawn(), drawn(1)
    label, rest = decoupled(student, teacher, LABELS, temperature)
    doubt = 1 - (teacher / temperature).softmax(-1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(label + doubt * rest, kd_kl(student, teacher, temperature))


def test_the_rest_does_not_see_the_logit_of_the_label() -> None:
    student = drawn().requires_grad_()
    _, rest = decoupled(student, drawn(1), LABELS, 4.0)
    (gradient,) = torch.autograd.grad(rest.sum(), student)
    assert float(gradient.gather(1, LABELS[:, None]).abs().max()) < 1e-12
    louder = student.detach() + 7 * F.one_hot(LABELS, 9)
    torch.testing.assert_close(decoupled(louder, drawn(1), LABELS, 4.0)[1], rest.detach())


@pytest.mark.parametrize("height", [100.0, 1e4])
def test_a_network_without_doubt_costs_a_finite_number(height: float) -> None:
    """In float32 its 1 - p is zero, and the logarithm of that is not."""
    sure = height * F.one_hot(LABELS, 9).float()
    for student, teacher in ((sure, drawn().float()), (drawn().float(), sure), (sure, sure), (-sure, sure)):
        logits = student.clone().requires_grad_()
        label, rest = decoupled(logits, teacher, LABELS, 1.0)
        (gradient,) = torch.autograd.grad((label + rest).sum(), logits)
        assert label.isfinite().all()
        assert rest.isfinite().all()
        assert gradient.isfinite().all()


def test_two_classes_have_no_rest() -> None:
    _, rest = decoupled(drawn()[:, :2], drawn(1)[:, :2], LABELS % 2, 4.0)
    torch.testing.assert_close(rest, torch.zeros(6).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.2])
def test_mixed_labels_are_two_losses_in_their_shares(share: float, smoothing: float) -> None:
    student, teacher, others = drawn(), drawn(1), LABELS.flip(0)
    targets = share * F.one_hot(LABELS, 9).double() + (1 - share) * F.one_hot(others, 9)
    mixed = decoupled_mixed(student, teacher, (1 - smoothing) * targets + smoothing / 9, 4.0)
    first, second = decoupled(student, teacher, LABELS, 4.0), decoupled(student, teacher, others, 4.0)
    for got, a, b in zip(mixed, first, second, strict=True):
        torch.testing.assert_close(got, share * a + (1 - share) * b)


def test_a_row_without_a_label_does_no_harm() -> None:
    label, rest = decoupled(drawn()[:2], drawn(1)[:2], torch.tensor([-100, 3]), 4.0)
    assert label.isfinite().all()
    assert rest.isfinite().all()
