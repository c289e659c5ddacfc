"""The engine's own step on an imagined GPU: nothing between two batches waits for the device or brings the host's tensors in.

The backward pass is the one thing that is left out: it leaves a gradient on each trained parameter and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdscale.benchmarks.step import endless, engine_step, some_batches
from kdscale.engine.parallel import Session, connect
from kdscale.engine.parallel.wrapped import Wrapped
from kdscale.engine.stage import Stage, build_stage
from kdscale.methods import KD, Crd, Shake
from kdscale.recipe import AdamW, Ema, Machine, Timm
from tests.engine import small, stages
from tests.imagined_gpu import DEVICE, ImaginedGpu


class NeverThere:
    """An event that the device has not come to: verdicts stay on their way."""

    def record(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def session() -> Session:
    return connect()


def moved(stage: Stage, gpu: ImaginedGpu) -> None:
    """All that a stage holds. Its optimizer is made on the device, at the first step."""
    gpu.take((stage.distiller, *stage.frozen.values()))
    stage.session.device = DEVICE
    named = dict(stage.distiller.named_parameters())
    for group in stage.groups:
        group["params"] = [named[name] for name in group["names"]]


def no_gradient(wrapped: Wrapped, loss: Tensor) -> None:
    assert loss.device == DEVICE
    for group in wrapped.groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)


@pytest.mark.parametrize("optimizer", [AdamW(1e-3, clip=1.0), Timm("lamb", 1e-3)], ids=["adamw", "lamb"])
@pytest.mark.parametrize(("method", "kind"), [(KD(), "cnn"), (Shake(), "token"), (Shake(plus=(Crd(negatives=16),)), "cnn")])
def test_a_step_waits_for_nothing(
    method: Any, kind: str, optimizer: Any, data: Path, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stages.recipe_of(method, kind, data, ema=Ema(0.9), machine=Machine(log_every=10**6))
    recipe = endless(replace(recipe, phases=tuple(replace(p, optimizer=optimizer) for p in recipe.phases)))
    stage, gpu = build_stage(recipe, 0, session, None), ImaginedGpu()
    batches = [gpu.batch(batch) for batch in some_batches(stage)]
    moved(stage, gpu)
    monkeypatch.setattr(torch.cuda, "Event", NeverThere)
    monkeypatch.setattr(Wrapped, "backward", no_gradient)
    monkeypatch.setattr(session.accelerator, "prepare", lambda *given: given)  # which moves nothing that is there already
    with gpu.working():
        step = engine_step(stage, tmp_path)
        for number in range(2):
            step(number, batches[number])
