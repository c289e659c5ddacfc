"""Networks and phases that are imagined for a test."""

from __future__ import annotations

from typing import Any

import torch

from kdscale.engine.imagined import imagined
from kdscale.networks import FrozenNetwork, build_network
from kdscale.plan.counted import Counted, Frozen, Line
from kdscale.plan.trace import Trace
from kdscale.recipe import Model
from kdscale.types import DatasetInfo

P = 1_000_000  # parameters of a counted phase of round numbers


def info(side: int = 224, classes: int = 1000, samples: int = 1000) -> DatasetInfo:
    return DatasetInfo("", samples, classes, None, (0.5,) * 3, (0.25,) * 3, side)


def forward_macs(name: str, side: int = 224, classes: int = 1000, batch: int = 2) -> float:
    """Multiply-adds of one image through a network that is never made."""
    facts = info(side, classes)
    with imagined(facts):
        network = build_network(
            Model(name), facts, trained=False, seed=0, normalisation=(facts.mean, facts.std), precision="fp32", load=False
        )
        assert isinstance(network, FrozenNetwork)
        trace = Trace(network.parameters())
        with trace.of("it"), torch.no_grad():
            network(torch.empty(batch, 3, side, side))
    return sum(flops for (_, what), flops in trace.totals.items() if what in ("convolution", "matmul")) / 2 / batch


def counted(**changes: Any) -> Counted:
    """A phase of round numbers: a million parameters, 10 GFLOP an image and a teacher of 30."""
    work = {
        ("trained", "matmul"): Line(0.0, 1e10),
        ("teacher", "convolution"): Line(0.0, 3e10),
        ("trained", "bytes"): Line(0.0, 1e6),
        ("trained", "launches"): Line(100.0, 0.0),
    }
    settings: dict[str, Any] = {
        "parameters": P,
        "averaged": P,
        "held": 0,
        "block": P // 10,
        "images": 1000,
        "frozen": {"teacher": Frozen("t", 2 * P, 8 * P, 1.0)},
        "work": work,
        "peak": Line(1e6, 1e6),
        "kept": Line(1e6, 1e6),
        "gathered": Line(0.0, 0.0),
        "gathers": 0,
    }
    return Counted(**(settings | changes))
