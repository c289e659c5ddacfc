from __future__ import annotations

import pytest
import torch

from kdscale.engine.gap import Gaps
from kdscale.engine.parallel import Session

from ..methods.small import BATCH, drawn_batch


def test_padding_and_other_classes_are_left_out(session: Session) -> None:
    said = {name: torch.randn(BATCH, 10, generator=torch.Generator().manual_seed(n)) for n, name in enumerate(("student", "t"))}
    batch, gaps = drawn_batch(), Gaps()
    batch.valid[-1] = False
    said["t"][-1] = torch.inf
    for rows in range(2):
        gaps.update(said | {"other": torch.zeros(BATCH, 7)}, batch)
        p, q = (said[name][:-1].double().log_softmax(-1) for name in ("t", "student"))
        expected = float((p.exp() * (p - q)).sum()) * (rows + 1)
        assert gaps.result(session, 1) == pytest.approx({"t": expected})
