"""A sample without pixels (data.on_bad=mask) counts in no loss of any registered method, of labels, of features or of banks."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from kdscale.losses.logits import IGNORED

from .cases import CASES, VARIANTS, Case
from .small import CLOCK, built, drawn_batch, taught

SLOW = pytest.mark.slow


def is_quick(case: Case) -> bool:
    """The first phase of each method with its defaults, on a CNN."""
    return case.kind == "cnn" and not case.number and case.whole not in VARIANTS.values()


@pytest.mark.parametrize("soft", [False, pytest.param(True, marks=SLOW)], ids=["labels", "soft targets"])
@pytest.mark.parametrize("case", [pytest.param(c, marks=() if is_quick(c) else SLOW, id=key) for key, c in CASES.items()])
@torch.no_grad()
def test_a_masked_row_is_as_if_it_were_not_there(case: Case, soft: bool) -> None:
    """In eval mode, where no row knows of another through the statistics of a batch norm."""
    batch, at = drawn_batch(soft=soft), 2
    batch.images[at] *= 40
    batch.labels[at], batch.valid[at] = IGNORED, False
    if batch.targets is not None:
        batch.targets[at] = 0
    tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
    without = replace(batch, **{name: value[batch.valid] for name, value in tensors.items()})
    distiller, context = built(case.phase, case.kind)
    before, found = copy.deepcopy(distiller.eval().state_dict()), []
    for seen in (batch, without):
        distiller.load_state_dict(before)
        distiller.before_step(CLOCK)
        losses = distiller(seen, taught(case.method, context, seen))
        found.append({name: float(loss) for name, loss in losses.items()})
    assert found[0] == pytest.approx(found[1], rel=2e-5, abs=1e-7)
