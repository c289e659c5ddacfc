from __future__ import annotations

import torch

from kdscale.losses import deit
from kdscale.losses.logits import cross_entropy, kd_kl

HEAD = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))


def test_hard_reads_only_the_teachers_first_choice() -> None:
    sharper = TEACHER * 7
    assert torch.equal(deit.hard(HEAD, TEACHER), deit.hard(HEAD, sharper))
    assert torch.equal(deit.hard(HEAD, TEACHER), cross_entropy(HEAD, TEACHER.argmax(-1)))
    assert not torch.equal(deit.hard(HEAD, TEACHER, 0.1), deit.hard(HEAD, TEACHER))


def test_the_two_reductions_differ_by_the_number_of_classes() -> None:
    paper, program = (deit.soft(HEAD, TEACHER, 3.0, reduction) for reduction in ("batchmean", "numel"))
    torch.testing.assert_close(paper, 10 * program)
    assert torch.equal(paper, kd_kl(HEAD, TEACHER, 3.0))
