"""The stored case of a stage: adapter first, then the student's map resized, then the distance."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.losses.stage import resized, stage_distance
from kdscale.networks.bridges import MapBridge
from tests.golden import DTYPES, Case, methods_case

SCALARS = [
    ("mean", "mean", "bilinear"),
    ("channel_sum", "channel_sum", "bilinear"),
    ("batch_sum", "batch_sum", "bilinear"),
    ("mean_avgpool", "mean", "avgpool"),
]


def distance(case: Case, reduction: Any, resize: Any) -> Tensor:
    """Through the bridge itself, with the stored adapter, which has no bias."""
    adapter = case.given["adapter"]
    bridge = MapBridge(adapter.shape[1], adapter.shape[0], partial(resized, how=resize)).to(adapter.dtype)
    stored = {"adapter.weight": adapter, "adapter.bias": torch.zeros_like(adapter[:, 0, 0, 0])}
    maps = (case.given["student_feat"], case.given["teacher_feat"])
    return stage_distance(*torch.func.functional_call(bridge, stored, maps), reduction).mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "reduction", "resize"), SCALARS)
def test_stage(name: str, reduction: Any, resize: Any, dtype: torch.dtype) -> None:
    case = methods_case("stage", dtype)
    loss = distance(case, reduction, resize)
    case.value(name, loss)
    if name == "mean":
        case.gradients(loss, "grad.", ["student_feat", "adapter"])
