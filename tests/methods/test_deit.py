from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdscale.errors import NetworkError
from kdscale.methods import Deit

from .small import built, drawn_batch, taught


def test_each_kind_has_the_papers_constants() -> None:
    assert (Deit().share, Deit(hard=False).share, Deit(hard=False, alpha=0.5).share) == (0.5, 0.1, 0.5)
    assert Deit(hard=False).tau == 3.0
    with pytest.raises(ValidationError):
        Deit(alpha=1.5)


@pytest.mark.parametrize("hard", [True, False])
def test_labels_reach_the_class_head_and_the_teacher_the_token(hard: bool) -> None:
    method = Deit(hard=hard)
    distiller, context = built(method, "token")
    batch = drawn_batch()
    losses = distiller(batch, taught(method, context, batch))
    body = distiller.student.body
    heads = (body.head.weight, body.head_dist.weight)
    labels = torch.autograd.grad(losses["ce"], heads, allow_unused=True, retain_graph=True)
    teacher = torch.autograd.grad(losses["distillation<-teacher"], heads, allow_unused=True)
    assert labels[0] is not None
    assert labels[1] is None
    assert teacher[0] is None
    assert teacher[1] is not None


def test_the_student_answers_with_the_mean_of_both_heads() -> None:
    distiller, _ = built(Deit(), "token")
    said = distiller.eval()(drawn_batch())
    torch.testing.assert_close(said["student"], (said["class"] + said["distillation"]) / 2)


def test_a_student_without_a_token_is_refused_with_one_that_has_it() -> None:
    with pytest.raises(NetworkError, match=r"wrn_16_1.*deit_.*distilled"):
        built(Deit(), "cnn")
