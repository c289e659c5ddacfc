from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdscale.methods import KD, Supervised

from .small import built, drawn_batch, taught


def test_supervised_is_plain_cross_entropy() -> None:
    distiller, _ = built(Supervised(), "cnn")
    distiller.eval()
    batch = drawn_batch()
    expected = F.cross_entropy(distiller.student(batch.images).logits, batch.labels)
    torch.testing.assert_close(distiller(batch, {})["ce"], expected)


@pytest.mark.parametrize(("ce", "kd"), [(0.1, 0.9), (1.0, 0.0), (0.5, 0.5)])
def test_kd_weighs_labels_and_teacher(ce: float, kd: float) -> None:
    method = KD(temperature=2.0, ce=ce, kd=kd)
    distiller, context = built(method, "cnn")
    distiller.eval()
    batch = drawn_batch()
    said = taught(method, context, batch)
    student, teacher = distiller.student(batch.images).logits, said["teacher"].logits
    assert student is not None
    assert teacher is not None
    divergence = F.kl_div(F.log_softmax(student / 2, -1), F.softmax(teacher / 2, -1), reduction="batchmean") * 4
    losses = distiller(batch, said)
    torch.testing.assert_close(losses["ce"], ce * F.cross_entropy(student, batch.labels))
    torch.testing.assert_close(losses["kd"], kd * divergence)
