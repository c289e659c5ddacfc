"""Losses are computed in float32 whatever the network computed in; float64, which only tests hand in, stays float64."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 if it is a half type, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
