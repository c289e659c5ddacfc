from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kdscale.losses import alpha_divergence
from kdscale.losses.dkd import decoupled
from kdscale.losses.logits import kd_kl
from kdscale.methods import DKD, AlphaDivergence
from kdscale.methods.logit_terms import linear_ramp
from kdscale.methods.terms import TermMethod
from kdscale.types import Progress

from .small import CLASSES, CLOCK, built, drawn_batch, taught

BATCH = drawn_batch()


def answers(method: TermMethod, **changes: object) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Losses after the first epoch, and the logits of student and teacher."""
    distiller, context = built(method, "cnn")
    distiller.eval().before_step(CLOCK)
    batch = replace(BATCH, **changes)  # type: ignore[arg-type]
    said = taught(method, context, batch)
    student, teacher = distiller.student(batch.images).logits, said["teacher"].logits
    assert student is not None
    assert teacher is not None
    return distiller(batch, said), student, teacher


def test_the_decoupled_parts_have_weights_of_their_own() -> None:
    losses, student, teacher = answers(DKD(alpha=2.0, beta=3.0, warmup_epochs=0.0))
    label, rest = decoupled(student, teacher, BATCH.labels, 4.0)
    torch.testing.assert_close(losses["ce"], F.cross_entropy(student, BATCH.labels))
    torch.testing.assert_close(losses["label<-teacher"], 2 * label.mean())
    torch.testing.assert_close(losses["rest<-teacher"], 3 * rest.mean())


def test_decoupled_distillation_grows_over_the_first_epochs() -> None:
    for epoch, share in ((0.0, 0.05), (0.99, 0.05), (9.5, 0.5), (19.0, 1.0), (200.0, 1.0)):
        assert linear_ramp(Progress(0, 1, 0, epoch, 240.0), 20) == pytest.approx(share)
    full, ramped = (answers(DKD(warmup_epochs=epochs))[0] for epochs in (0.0, 20.0))
    torch.testing.assert_close(ramped["rest<-teacher"], full["rest<-teacher"] / 20)
    torch.testing.assert_close(ramped["ce"], full["ce"])


def test_a_mixed_batch_is_two_losses() -> None:
    targets = 0.3 * F.one_hot(BATCH.labels, CLASSES).float() + 0.7 * F.one_hot(BATCH.labels.flip(0), CLASSES)
    losses, student, teacher = answers(DKD(warmup_epochs=0.0, alpha=1.0), targets=targets)
    first, second = (decoupled(student, teacher, y, 4.0)[0] for y in (BATCH.labels, BATCH.labels.flip(0)))
    torch.testing.assert_close(losses["label<-teacher"], (0.3 * first + 0.7 * second).mean())


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (1.0, 4.0), (0.5, 1.0), (-1.0, 2.0)])
def test_one_alpha_is_the_exact_divergence(alpha: float, temperature: float) -> None:
    losses, student, teacher = answers(AlphaDivergence(alpha=alpha, temperature=temperature, weight=0.5))
    rows = alpha_divergence.divergence(student, teacher, alpha, temperature)
    torch.testing.assert_close(losses["alpha"], rows.mean() / 2)
    if alpha == 1:
        torch.testing.assert_close(losses["alpha"], kd_kl(student, teacher, temperature).mean() / 2)


def test_the_adaptive_form_logs_what_it_trains_against() -> None:
    method = AlphaDivergence()
    losses, student, teacher = answers(method)
    worse = torch.maximum(*(alpha_divergence.value(student, teacher, a, method.clip) for a in (method.low, method.high)))
    torch.testing.assert_close(losses["alpha"].detach(), worse.mean())
    assert losses["alpha"].requires_grad
